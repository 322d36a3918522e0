"""Answers of an evaluation that is kept, judged again without the model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from ....adapters.artifact.manifest import canonical_json
from ....adapters.artifact.output import claimed_file, write_output
from ....adapters.errors import InvalidArtifact, UsageError
from ...data.records import load_records, require_pictures
from ...data.sources import data_path
from ..result import Evaluation
from .judging import judged_by
from .options import AgainOptions

KEYS = ("model", "rows", "decisions")  # of the file of an evaluation


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation that `safetykit eval` or `judge` wrote.

    Raises:
        UsageError: there is no such file.
        InvalidArtifact: it is none.
    """
    if not path.is_file():
        raise UsageError(f"There is no evaluation at {path}.", "Give a file that `safetykit eval -o` wrote.")
    try:
        found = Evaluation.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidArtifact(
            f"{path} is no evaluation: {where}: {first['msg']}.", "Give a file that `safetykit eval -o` wrote."
        ) from None
    ids = Counter(one.id for one in found.decisions)
    if twice := next((name for name, count in ids.items() if count > 1), None):
        raise InvalidArtifact(f"{path} holds two answers to {twice}.", "Give a file that `safetykit eval -o` wrote.")
    if not ids:
        raise InvalidArtifact(f"{path} holds no answer.", "Give a file that `safetykit eval -o` wrote.")
    return found


def judge_again(
    evaluation: Path,
    options: AgainOptions,
    *,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    waiting: Callable[[str], None] | None = None,
) -> Evaluation:
    """Judge the answers of ``evaluation`` and write the result to ``out``.

    Raises:
        UsageError: no judge is named; a judge, the records or the labels are not those; ``out`` is taken.
        InvalidArtifact: ``evaluation`` is none.
    """
    if not options.judged:
        raise UsageError(
            "There is nothing to judge by.", "Name a judge (--judge), or give what people said (--labels)."
        )
    if out.exists() and evaluation.exists() and out.samefile(evaluation):
        raise UsageError(f"{out} is read to make it.", "Choose another output file.")
    with claimed_file(out, overwrite=options.overwrite, keys=KEYS):
        given = read_evaluation(evaluation)
        wanted = {one.id for one in given.decisions}
        people = options.people(wanted)
        found = load_records(data_path(options.data), **options.reading())
        records = found.of(one for one in found if one.id in wanted)
        judges = options.opened(waiting)
        if any(one.sees for one in judges):
            require_pictures(records)
        result = judged_by(given, records, judges, labels=people, progress=progress, say=say)
        write_output(out, canonical_json(result.model_dump(mode="json")))
    return result
