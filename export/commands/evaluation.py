"""`safetykit eval`: records answered by a checkpoint, with or without adapters, or, without torch, by an export or a
server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.artifact.held import beside
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.names import located
from ...adapters.artifact.output import claimed_file, write_output
from ...adapters.errors import ServerFailed, UsageError
from ...toolkit.data.journal import Journal, require_journal
from ...toolkit.data.records import Record, require_pictures
from ...toolkit.data.sources import is_address, is_export
from ...toolkit.defences.registry import defended, require_defensible
from ...toolkit.distributed.output import by_first
from ...toolkit.distributed.world import is_first
from ...toolkit.evaluation.evaluate import Generator, evaluate
from ...toolkit.evaluation.judges.again import KEYS
from ...toolkit.evaluation.judges.judging import judged_by
from ...toolkit.evaluation.result import Evaluation
from ...toolkit.model.asking import require_answerable
from ...toolkit.model.endpoint import Endpoint
from ...toolkit.model.options import LoadOptions
from ...toolkit.model.shortening import Shortening
from ...toolkit.progress import Progress
from ..options import SwapOptions
from ..runtime.onnx_vlm import OnnxVLM
from .choices import EvalOptions

_BATCH = 32  # records at once


@dataclass(frozen=True)
class _Asked:
    """What answers, and everything its answers depend on beside the records."""

    model: Generator
    identity: dict[str, Any]


def evaluate_model(
    model: str,
    adapters: Sequence[Path] = (),
    options: EvalOptions | None = None,
    *,
    out: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    waiting: Callable[[str], None] | None = None,
    judging: Progress | None = None,
    loader: Callable[..., Any] | None = None,
    **given: Any,
) -> Evaluation:
    """Evaluate a checkpoint, with or without adapters, an export folder, or a server.

    With ``out``, finished batches are kept beside it until the end, so that an interrupted
    evaluation goes on where it was.

    Args:
        model: folder or name of a checkpoint, folder of an export, or address of a server, ``http://…/v1``.
        options: see :class:`EvalOptions`; its fields can be given as keywords too, which win.
        out: a file to write.
        progress: told how many records are answered; ``say``: each step as it begins; ``waiting``: why a server is
            asked again, and an empty text once it answers; ``judging``: how many answers a judge has judged.
        loader: gives the model of a checkpoint folder; by default it is loaded anew.

    Raises:
        UsageError: an option cannot act, ``out`` exists or is no evaluation, the model takes no system turn, or what is
            kept of an interrupted evaluation is of other records or options.
        ServerFailed: a server does not answer.
    """
    options = EvalOptions(**given) if options is None else options.but(**given)
    options.require_use(("overwrite",), out is not None, "a file to write (--out)")
    if out is None:
        return _evaluated(model, adapters, options, None, progress, say, waiting, judging, loader)
    journal = beside(located(out), "partial.jsonl")
    claim = claimed_file(out, overwrite=options.overwrite, keys=KEYS, spent=[journal])
    with by_first(claim):
        result = _evaluated(model, adapters, options, journal, progress, say, waiting, judging, loader)
        if is_first():
            write_output(out, canonical_json(result.model_dump(mode="json")))
    return result


def _evaluated(
    model: str,
    adapters: Sequence[Path],
    options: EvalOptions,
    journal_path: Path | None,
    progress: Progress | None,
    say: Callable[[str], None] | None,
    waiting: Callable[[str], None] | None,
    judging: Progress | None,
    loader: Callable[..., Any] | None,
) -> Evaluation:
    records = options.records()
    options.require_use(("truncate",), any(one.messages for one in records), "conversations among the records")
    require_pictures(records)
    people, judges = options.people([one.id for one in records]), options.opened(waiting)
    say = say or (lambda _: None)
    result, journal = _answered(model, adapters, options, records, journal_path, progress, say, waiting, loader)
    if options.judged:
        result = judged_by(result, records, judges, labels=people, progress=judging, say=say)
    if journal:
        journal.finish()
    return result


def _answered(
    model: str,
    adapters: Sequence[Path],
    options: EvalOptions,
    records: Sequence[Record],
    journal_path: Path | None,
    progress: Progress | None,
    say: Callable[[str], None],
    waiting: Callable[[str], None] | None,
    loader: Callable[..., Any] | None,
) -> tuple[Evaluation, Journal | None]:
    """The answers, counted as usual, and where they are kept; judges that are models find the model's memory free."""
    what: dict[str, Any] = {
        "records (--data, --split, --limit)": _digest(records),
        "--max-new-tokens": options.max_new_tokens,
        "--system": options.system,
        "--defence": options.defence or "",
        "--truncate": options.truncate,
    }
    if journal_path:
        require_journal(journal_path, what)
    if options.defence:
        require_defensible(options.defence, records)
    with _opened(model, adapters, options, records, say, waiting, loader) as asked:
        journal = Journal(journal_path, {**what, **asked.identity}) if journal_path else None
        say("answering")
        model_asked: Generator = Shortening(asked.model) if options.truncate else asked.model
        with _kept(journal):
            result = evaluate(
                defended(model_asked, options.defence) if options.defence else model_asked,
                records,
                name=model,
                max_new_tokens=options.max_new_tokens,
                batch_size=options.rows or _BATCH,
                progress=progress,
                journal=journal,
                system=options.system,
            )
    return result, journal


@contextmanager
def _kept(journal: Journal | None) -> Iterator[None]:
    """Say of what a server has answered before it failed that it is kept."""
    try:
        yield
    except ServerFailed as error:
        if journal and journal.done:
            kept = f"What it has answered is kept in {journal.path}: the same command goes on from there."
            raise ServerFailed(error.message, f"{error.next_step} {kept}") from None
        raise


def _digest(records: Sequence[Record]) -> str:
    """SHA-256 of the records in their order."""
    found = hashlib.sha256()
    for record in records:
        found.update(record.digest().encode())
    return found.hexdigest()


@contextmanager
def _opened(
    model: str,
    adapters: Sequence[Path],
    options: EvalOptions,
    records: Sequence[Record],
    say: Callable[[str], None],
    waiting: Callable[[str], None] | None,
    loader: Callable[..., Any] | None,
) -> Iterator[_Asked]:
    if is_address(model):
        yield _served(model, adapters, options, say, waiting)
        return
    options.require_use(("served_model",), False, "the address of a server")
    if is_export(Path(model)):
        yield _export(Path(model), adapters, options, records, say)
        return
    require_answerable(model, records)
    from .checkpoint import opened_checkpoint  # needs torch

    with opened_checkpoint(model, adapters, options, say, loader) as (vlm, identity):
        yield _Asked(vlm, identity)


def _export(
    folder: Path, adapters: Sequence[Path], options: EvalOptions, records: Sequence[Record], say: Callable[[str], None]
) -> _Asked:
    if adapters:
        raise UsageError("An export holds its adapters already.", "Leave out --adapter, or evaluate the checkpoint.")
    decided = "an adapter: what an export holds was decided when it was made"
    options.require_use(("allow_wrong_base",), False, decided)
    placed = tuple(name for name in LoadOptions.model_fields if name != "batch_size")
    options.require_use(placed, False, "a checkpoint: an export runs in ONNX Runtime")
    options.require_use(("allow_uncorrected_detector",), bool(options.swap), decided)
    say("loading")
    onnx_vlm = OnnxVLM.from_pretrained(folder, options.providers, index=options.external_index, opened=False)
    require_answerable(folder, records, onnx_vlm.inputs)
    onnx_vlm.inputs.limit(options.max_prompt_tokens)
    identity: dict[str, Any] = {"export": onnx_vlm.manifest.model_dump(mode="json")}
    if options.swap:
        onnx_vlm.swap(*options.swap, allow_uncorrected_detector=options.allow_uncorrected_detector)
        assert onnx_vlm.swapped is not None
        identity["--swap"] = onnx_vlm.swapped.digest()
    onnx_vlm.open()
    return _Asked(onnx_vlm, identity)


def _served(
    url: str,
    adapters: Sequence[Path],
    options: EvalOptions,
    say: Callable[[str], None],
    waiting: Callable[[str], None] | None,
) -> _Asked:
    if adapters:
        raise UsageError("A server has its adapters already.", "Leave out --adapter, or evaluate the checkpoint.")
    here = ("allow_wrong_base", "max_prompt_tokens", "truncate", *SwapOptions.model_fields)
    options.require_use(here, False, "a model that runs here: a server decides by itself")
    placed = tuple(name for name in LoadOptions.model_fields if name != "batch_size")
    options.require_use(placed, False, "a checkpoint: a server runs elsewhere")
    say("asking which models there are")
    endpoint = Endpoint(url, options.served_model, waiting=waiting)
    return _Asked(endpoint, {"server": endpoint.url, "model": [endpoint.model, endpoint.fingerprint]})
