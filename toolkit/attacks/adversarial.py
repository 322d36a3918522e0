"""Folders of records with adversarial pictures: what is made of them, and what is kept of an interrupted attack."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...adapters.artifact.held import beside
from ...adapters.artifact.manifest import sealed
from ...adapters.artifact.names import located
from ..data.ahead import PicturesAhead
from ..data.importing import SOURCE
from ..data.journal import Journal
from ..data.pictures import as_picture, open_picture
from ..data.records import Record
from ..data.writing import RecordsFolder, writing
from ..evaluation.refusal import RefusalTokens
from ..model.batching import fitting, is_out_of_memory
from ..model.opening import Opened
from ..model.vlm import VLM
from ..progress import Progress
from .choosing import Chosen
from .options import PgdOptions
from .pgd import Found, Pgd, Start, State
from .pixels import PixelMaps, grey

CARRIER = "adversarial"
ATTACK, FROM = "attack:", "from:"  # of the tags that name the attack, and the carrier that a request came by
_USUAL = 16  # records at once
_GREY = 224  # pixels along the side of the picture that stands in for none


@dataclass
class Made:
    """What an attack has made.

    Attributes:
        name: of the attack, as the records' tags have it.
        counts: records by ``split/carrier/label``.
        losses: mean loss of the clean pictures, of the best ones, and of these in 8 bits.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    losses: dict[str, float] = field(default_factory=dict)


def attack(
    model: Opened,
    found: Chosen,
    options: PgdOptions,
    out: Path,
    *,
    adaptive: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Attack records and write a folder of them with their adversarial pictures.

    A record has the id of the one it was made of with the attack's name, the carrier ``adversarial``, tags
    ``attack:NAME`` and ``from:CARRIER``, and its label, split, category and group (its id, if it has none). What is
    finished is kept in :func:`journal_of`, and gone on from.

    Args:
        adaptive: adapters are applied, and seen by the attack.
        progress: told how many steps are done; ``say``: each phase as it begins.

    Raises:
        UsageError: the picture processor lets no gradient through, the model's refusals are not known from these
            records, or what is kept is of another attack.
    """
    refusal = None
    if options.objective == "refusal":
        say("asking how the model refuses")
        refusal = RefusalTokens.find(model.vlm, found.others)
    pgd = Pgd(model.vlm, options, model.hooks if adaptive else None, refusal)
    journal = Journal(journal_of(out), {**identity(found, options), **model.identity})
    say("attacking")
    run = _universal if options.universal else _each
    made, losses = Made(options.name(adaptive)), dict[str, list[float]]()
    with writing(out, overwrite=overwrite) as folder:
        for record, one in run(pgd, model.vlm, found.records, options, journal, progress):
            _add(folder, record, one, made)
            losses[record.id] = [one.before, one.after, one.rounded]
        means = np.mean(list(losses.values()), axis=0).tolist()
        made.losses = dict(zip(("before", "after", "rounded"), means, strict=True))
        settings = {name: value for name, value in options.values().items() if name in options.acting()}
        about: dict[str, Any] = {
            "made": "adversarial pictures for evaluation",
            "attack": made.name,
            "settings": settings,
            "of": model.identity,
            "left_out": found.left_out,
            "mean_loss": made.losses,
            "loss": losses,
        }
        (folder.folder / SOURCE).write_bytes(sealed(about))
        journal.finish()
    return made


def journal_of(out: Path) -> Path:
    """Where an attack keeps what is finished until its folder is there."""
    return beside(located(out), "partial.jsonl")


def identity(found: Chosen, options: PgdOptions) -> dict[str, Any]:
    """What the pictures depend on, by the words in which a user is told of it."""
    own = {"data", "split", "limit", "skip_bad_rows", "workers", "overwrite"}
    said = {f"--{name.replace('_', '-')}": value for name, value in options.values().items() if name not in own}
    if options.picture is not None:
        said["--picture"] = hashlib.sha256(open_picture(str(options.picture)).tobytes()).hexdigest()
    return {"records (--data, --split, --limit)": found.digest, **said}


Step = tuple[Record, Found]


def _each(
    pgd: Pgd,
    vlm: VLM,
    records: Sequence[Record],
    options: PgdOptions,
    journal: Journal,
    progress: Progress | None,
) -> Iterator[Step]:
    done = {name: held for batch in journal.done.values() for name, held in batch.items()}
    left = _in_order(record for record in records if record.id not in done)
    total, count = len(records) * options.steps, len(done) * options.steps

    def run(batch: Sequence[Start]) -> list[Found]:
        nonlocal count
        made: dict[str, Found] = {}
        for part in _by_size(batch):

            def told(rows: int = len(part)) -> None:
                nonlocal count
                count += rows
                if progress:
                    progress(count, total)

            made |= zip((one.record.id for one in part), pgd.on_each(part, told), strict=True)
        return [made[one.record.id] for one in batch]

    for batch, found in fitting(_starts(left, options, PixelMaps(vlm.inputs)), vlm.batch_size, _USUAL, run):
        held = {one.record.id: _held(made) for one, made in zip(batch, found, strict=True)}
        journal.add(batch[0].record.id, held)
        done |= held
    for record in records:
        yield record, _found(done[record.id])


def _universal(
    pgd: Pgd,
    vlm: VLM,
    records: Sequence[Record],
    options: PgdOptions,
    journal: Journal,
    progress: Progress | None,
) -> Iterator[Step]:
    starts = list(_starts(_in_order(records), options, PixelMaps(vlm.inputs)))
    state, count = None, 0
    if journal.done:
        step, last = max((int(step), one) for step, one in journal.done.items())
        shape = (*starts[0].pixels.size, 3)
        state = State(step, _floats(last["change"], shape), _floats(last["best"], shape), last["lowest"])
        count = step

    def keep(state: State) -> None:
        held = {"change": _packed(state.change), "best": _packed(state.best), "lowest": state.lowest}
        journal.add(str(state.step), held)

    def told() -> None:
        nonlocal count
        count += 1
        if progress:
            progress(count, options.steps)

    made: dict[str, Found] = {}
    while not made:
        rows = vlm.batch_size.of(_USUAL)
        batches = [starts[at : at + rows] for at in range(0, len(starts), rows)]
        try:
            found = pgd.on_all(batches, state, keep, told)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            vlm.batch_size.shrink(min(rows, len(starts)))
            continue
        for batch, several in zip(batches, found, strict=True):
            made |= zip((start.record.id for start in batch), several, strict=True)
    for record in records:
        yield record, made[record.id]


def _starts(records: Sequence[Record], options: PgdOptions, maps: PixelMaps) -> Iterator[Start]:
    """Records with what the model sees of their pictures; of those without, of the picture that stands in for it."""
    ahead = PicturesAhead(records)
    none = grey(_GREY) if options.picture is None else open_picture(str(options.picture))
    for record in records:
        shown = ahead.of(record)
        yield Start(record, *maps.start(shown[0] if shown else none))


def _in_order(records: Iterable[Record]) -> list[Record]:
    """Records of like lengths beside each other, as their requests are padded to the longest of a batch."""
    return sorted(records, key=lambda record: (record.pictured, record.stretch, record.length))


def _by_size(starts: Sequence[Start]) -> list[list[Start]]:
    parts: dict[tuple[int, int], list[Start]] = {}
    for one in starts:
        parts.setdefault(one.pixels.size, []).append(one)
    return list(parts.values())


def _add(folder: RecordsFolder, record: Record, found: Found, made: Made) -> None:
    fields = record.model_dump(exclude_unset=True, exclude={"pair", "image", "images"})
    written = folder.add(
        {
            **fields,
            "id": f"{record.id}-{made.name}",
            "image": folder.keep(_png(found.picture)),
            "carrier": CARRIER,
            "group": record.group or record.id,
            "tags": (*record.tags, f"{ATTACK}{made.name}", f"{FROM}{record.carrier}"),
        }
    )
    made.counts[f"{written.split}/{written.carrier}/{written.label}"] += 1


def _png(picture: np.ndarray) -> bytes:
    Image.fromarray(picture).save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def _held(found: Found) -> dict[str, Any]:
    picture = base64.b64encode(_png(found.picture)).decode()
    return {"picture": picture, "losses": [found.before, found.after, found.rounded]}


def _found(held: Mapping[str, Any]) -> Found:
    return Found(np.asarray(as_picture(base64.b64decode(held["picture"]))), *held["losses"])


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _floats(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape).astype(np.float32)
