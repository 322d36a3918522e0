"""`safetykit judge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.judges.options import AgainOptions
from . import console
from .derived import takes
from .options import Json


@takes(AgainOptions)
def judge(
    evaluation: Annotated[Path, typer.Argument(help="File that `safetykit eval -o` wrote.")],
    options: AgainOptions,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write: the evaluation as these judges see it.")],
    as_json: Json = False,
) -> None:
    from ..evaluation.judges.again import judge_again
    from .evaluation_views import evaluation as view
    from .evaluation_views import shown

    with console.work() as doing:
        result = judge_again(evaluation, options, out=out, progress=doing.count, say=doing, waiting=doing.hold)
    console.emit(shown(result), as_json=as_json, human=view)
