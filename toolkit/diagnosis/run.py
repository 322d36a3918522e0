"""The whole diagnosis: refusal, states, mediation, neurons, blocking, and the layers that they point to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from ...adapters.artifact.manifest import describe_data, library_versions
from ...adapters.ranges import require_seed
from ..data.journal import Journal
from ..data.records import Record, load_records
from ..data.sources import model_path
from ..distributed.dealing import dealt
from ..distributed.world import from_first, world
from ..evaluation.refusal import ASKED, RefusalTokens
from ..model.batching import is_out_of_memory
from ..model.vlm import VLM
from ..progress import Progress
from .assemble import Findings, assemble
from .blocking import answer_without, windows
from .channel_map import ChannelMap
from .choosing import LONGEST, ROWS, Chosen, require_diagnosis
from .mediation import Effects, mediate
from .neurons import Attribution, drawn, foremost, verify
from .pairs import POSITIONS, Pair, PairBatch, chunks, spread
from .patching import margins, mlp_output
from .plan import Plan
from .separation import pair_key
from .states import layer_states
from .terms import KINDS, Modality, Positions

Tick = Callable[..., None]  # counts forward passes: one, or as many as it is told


def diagnose(
    vlm: VLM | Path | str,
    records: Sequence[Record] | Path | str,
    *,
    budget: int | None = None,
    pairs: int = 128,
    neurons: int = 32,
    seed: int = 0,
    batch_size: int | None = None,
    max_new_tokens: int = LONGEST,
    progress: Progress | None = None,
    journal_path: Path | None = None,
    say: Callable[[str], None] | None = None,
    looked_at: Chosen | None = None,
) -> ChannelMap:
    """Diagnose a model on the ``fit`` split; other splits are not looked at.

    The result depends on model, records and options alone, also when it was interrupted and resumed.

    Args:
        vlm: the model, or a checkpoint's folder or name such as ``reference:mild``.
        records: or what :func:`load_records` reads, such as ``reference``.
        budget: most forward passes over a batch; fewer pairs, neurons and answered records are then used.
        pairs: at most this many per modality (harm in text, harm in pictures).
        neurons: how many MLP neurons to verify by patching per modality; 0 leaves neurons out.
        batch_size: pairs per forward pass; by default 16, and fewer if memory is short or the model was loaded so.
        progress: called with forward passes done and planned.
        journal_path: where finished batches are kept, to resume from; removed when all is done.
        say: told the cost before it is paid.
        looked_at: the records' pairs, where :func:`~.choosing.require_diagnosis` has chosen them.

    Raises:
        UsageError: the seed is none, there are too few pairs, the model refuses nothing, or the budget is too small.
    """
    require_seed(seed)
    if isinstance(records, (str, Path)):
        records = load_records(records, ["fit"])
    records = [record for record in records if record.split == "fit"]
    if isinstance(vlm, (str, Path)):
        asked: dict[str, Any] = {"budget": budget, "pairs": pairs, "neurons": neurons, "batch_size": batch_size}
        looked_at = require_diagnosis(model_path(vlm), records, **asked)
        vlm = VLM.from_pretrained(vlm)
    given: dict[str, Any] = {"budget": budget, "neurons": neurons, "seed": seed}
    given["max_new_tokens"] = max_new_tokens
    journal = None
    if journal_path:
        asked_rows = batch_size or vlm.batch_size.asked
        known: dict[str, Any] = known_identity(records, budget, pairs, neurons, seed, asked_rows, max_new_tokens)
        ran: Any = vlm.ran and vlm.ran.model_dump(mode="json")
        journal = Journal(journal_path, {**known, "model": vlm.fingerprint, "device or type": ran})
    looked_at = looked_at or Chosen.of(vlm.inputs, records, pairs)
    while True:
        rows = from_first(batch_size or vlm.batch_size.of(ROWS))  # other processes may have other memory
        try:
            return _diagnosed(vlm, records, looked_at, rows, journal, progress, say, **given)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            vlm.batch_size.shrink(rows)


def _diagnosed(
    vlm: VLM,
    records: Sequence[Record],
    looked_at: Chosen,
    batch_size: int,
    journal: Journal | None,
    progress: Progress | None,
    say: Callable[[str], None] | None,
    *,
    budget: int | None,
    neurons: int,
    seed: int,
    max_new_tokens: int,
) -> ChannelMap:
    if neurons:
        mlp_output(vlm, 0)  # refuses now what would be refused after the long part
    start = time.perf_counter()
    refusal = RefusalTokens.find(vlm, records, max_new_tokens)
    asked = min(2 * ASKED, sum(not record.pictured for record in records))
    asking = (time.perf_counter() - start) / asked
    full = looked_at.plan(vlm.base.n_layers, neurons, batch_size, max_new_tokens)
    plan = full.within(budget)
    chosen = {modality: spread(found, plan.pairs[modality]) for modality, found in looked_at.pairs.items()}
    if say:
        say(_cost(vlm, plan, full, chosen, refusal, asking, len(records)))
    work = _Work(vlm, refusal, plan, seed, journal, progress)
    findings = Findings(
        refusal=refusal,
        states=layer_states(vlm, _whole_pairs(records, plan.states), plan.rows, work.tick),
        effects={modality: work.mediation(found) for modality, found in chosen.items()},
        pair_ids={modality: _ids(found, plan.batch_size) for modality, found in chosen.items()},
        left_out=dict(looked_at.left_out),
        neurons={modality: work.neurons(modality, found) for modality, found in chosen.items()} if plan.neurons else {},
        outcomes=work.blocking(spread(looked_at.harmful, plan.blocked)),
        windows_on="pictures" if looked_at.on_pictures else "text",
    )
    hyperparameters = {
        **{name: value for name, value in asdict(plan).items() if name not in ("depth", "pairs")},
        "pairs": {modality: len(found) for modality, found in chosen.items()},
        "budget": budget,
        "forward_passes": plan.forward_passes,
        "backward_passes": plan.backward_passes,
    }
    result = assemble(vlm, findings, describe_data(records), hyperparameters, seed, library_versions())
    work.finish()
    return result


def known_identity(
    records: Sequence[Record],
    budget: int | None,
    pairs: int,
    neurons: int,
    seed: int,
    batch_size: int | None,
    max_new_tokens: int = LONGEST,
) -> dict[str, JsonValue]:
    """What a diagnosis depends on, as far as it is known before a model is loaded."""
    return {
        "records": describe_data(records).sha256,
        "--budget": budget,
        "--pairs": pairs,
        "--neurons": neurons,
        "--seed": seed,
        "--batch-size": batch_size,
        "longest answer": max_new_tokens,
    }


def _whole_pairs(records: Sequence[Record], count: int) -> list[Record]:
    """At most ``count`` records, evenly over their order, that keep pairs together."""
    units: dict[str, list[Record]] = {}
    for record in records:
        units.setdefault(pair_key(record), []).append(record)
    kept = spread(list(units.values()), len(units) * count // max(len(records), count))
    return [record for unit in kept for record in unit][:count]


def _ids(pairs: Sequence[Pair], size: int) -> list[str]:
    """Ids of the malicious records in the order of the batches."""
    return [pair.malicious.id for chunk in chunks(pairs, size) for pair in chunk]


def _cost(
    vlm: VLM,
    plan: Plan,
    full: Plan,
    chosen: dict[Modality, list[Pair]],
    refusal: RefusalTokens,
    asking: float,
    count: int,
) -> str:
    """What is about to be done; time from one timed batch per modality and from the answers given so far.

    Args:
        asking: seconds per answer.
        count: of the records of the split.
    """
    whole = plan.forward_passes - plan.patched_passes + plan.patched_work + plan.backward_passes
    passes = whole * plan.rows / count
    seconds = asking * plan.blocked * len(windows(plan.depth))
    for modality, pairs in chosen.items():
        batch = PairBatch.prepare(vlm, chunks(pairs, plan.batch_size)[0])
        margins(vlm, batch, refusal)
        start = time.perf_counter()
        margins(vlm, batch, refusal)
        alone = replace(plan, pairs={modality: len(pairs)})
        seconds += (time.perf_counter() - start) * (alone.patched_work + 2 * alone.backward_passes)
    text = (
        f"{plan.describe()}, as much as {passes:.1f} passes over the {count} records; about {max(1, round(seconds))} s"
    )
    if plan != full:
        text += f" (the budget left out {sum(full.pairs.values()) - sum(plan.pairs.values())} pairs, "
        text += f"{full.neurons - plan.neurons} neurons and {full.blocked - plan.blocked} answered records)"
    return text


class _Work:
    """The long part: passes are counted, and finished batches are found in the journal."""

    def __init__(
        self,
        vlm: VLM,
        refusal: RefusalTokens,
        plan: Plan,
        seed: int,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self._vlm, self._refusal, self._plan, self._seed = vlm, refusal, plan, seed
        self._journal, self._progress = journal, progress
        self._passes = 0

    def tick(self, count: int = 1) -> None:
        """Count forward passes."""
        self._passes += count
        if self._progress:
            self._progress(min(self._passes, self._plan.forward_passes), self._plan.forward_passes)

    def finish(self) -> None:
        """Everything is computed: the journal is not needed any more."""
        if self._journal:
            self._journal.finish()

    def _each(self, keys: Sequence[str], passes: int, compute: Callable[[int, Tick], Any]) -> list[Any]:
        """``compute(at, tick)`` for each key, or what it gave before an interruption; JSON keeps every float exactly.

        Args:
            passes: of each of them; it counts them itself, by ``tick``, if no other process takes part.
        """
        # Of the same rows at once: where memory made them fewer, batches hold other pairs.
        keys = [f"{self._plan.batch_size}/{key}" for key in keys]
        done = self._journal.done if self._journal else {}
        missing = [at for at, key in enumerate(keys) if key not in done]
        found = {at: done[key] for at, key in enumerate(keys) if key in done}
        if found:
            self.tick(passes * len(found))
        alone = world().size == 1
        inner: Tick = self.tick if alone else lambda count=1: None
        for at, value in dealt(missing, lambda at: compute(at, inner)):
            if self._journal:
                self._journal.add(keys[at], value)
            if not alone:
                self.tick(passes)
            found[at] = value
        return [found[at] for at in range(len(keys))]

    def mediation(self, pairs: Sequence[Pair]) -> Effects:
        """Effects of all sites on the pairs."""
        modality = pairs[0].modality
        positions = POSITIONS[modality]
        parts = chunks(pairs, self._plan.batch_size)

        def compute(at: int, tick: Tick) -> dict[str, Any]:
            batch = PairBatch.prepare(self._vlm, parts[at])
            effects = mediate(self._vlm, batch, self._refusal, positions, tick)
            return {name: getattr(effects, name).tolist() for name in ("malicious", "benign", "nie", "nde")}

        passes = 1 + len(positions) * len(KINDS) * self._plan.depth
        kept = self._each([f"mediation/{modality}/{at}" for at in range(len(parts))], passes, compute)
        return Effects.join(
            [Effects(modality, positions, **{name: np.array(one[name], np.float32) for name in one}) for one in kept]
        )

    def neurons(self, modality: Modality, pairs: Sequence[Pair]) -> dict[str, Any]:
        """Attribution of all neurons, and exact effects of the foremost and of some drawn at random.

        The attribution is one pass a batch and is not kept in the journal: it would be the largest part of it.
        """
        attribution = Attribution(POSITIONS[modality])

        def attributed(chunk: list[Pair]) -> dict[Positions, Any]:
            return attribution.of(self._vlm, PairBatch.prepare(self._vlm, chunk), self._refusal)

        for chunk, totals in dealt(chunks(pairs, self._plan.batch_size), attributed):
            attribution.add(len(chunk), totals)
            self.tick()
        means = attribution.mean()
        first = foremost(means["all"], self._plan.neurons)
        verified = [*first, *drawn(means["all"], self._plan.drawn, first, self._seed)]
        parts = chunks(pairs, self._plan.batch_size)

        def compute(at: int, tick: Tick) -> list[list[float]]:
            batch = PairBatch.prepare(self._vlm, parts[at])
            return verify(self._vlm, batch, self._refusal, verified, "all", tick).tolist()

        exact = self._each([f"neurons/{modality}/{at}" for at in range(len(parts))], 1 + len(verified), compute)
        return {
            "attribution": means,
            "foremost": len(first),
            "verified": verified,
            "exact": np.concatenate([np.array(part, np.float32) for part in exact], axis=-1),
        }

    def blocking(self, records: Sequence[Record]) -> dict[tuple[int, ...], list[Any]]:
        """Outcomes of the records' answers for every window of skipped layers."""
        skipped = windows(self._plan.depth)
        passes = -(-len(records) // self._plan.rows) * self._plan.max_new_tokens

        def compute(at: int, tick: Tick) -> list[str]:
            found = answer_without(self._vlm, records, skipped[at], self._plan.max_new_tokens, self._plan.rows)
            tick(passes)
            return found

        keys = [f"blocking/{'-'.join(map(str, layers))}" for layers in skipped]
        return dict(zip(skipped, self._each(keys, passes, compute), strict=True))
