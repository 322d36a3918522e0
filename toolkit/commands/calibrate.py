"""`safetykit calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...adapters.budget import Budget
from ..data.options import ReadOptions
from ..model.options import LoadOptions
from .common import reads_artifacts
from .derived import takes
from .options import AdapterOut, Data, Json, Model, Overwrite


class CalibrateOptions(Budget, ReadOptions, LoadOptions):
    """What is to be kept, how records are read, and how the model is loaded."""


@reads_artifacts
@takes(CalibrateOptions)
def calibrate(
    model: Model,
    data: Data,
    adapter: Annotated[Path, typer.Option("--adapter", help="Adapter folder whose threshold or strength is chosen.")],
    out: AdapterOut,
    options: CalibrateOptions,
    beside: Annotated[
        list[Path] | None, typer.Option("--with", help="Adapter that runs before it, as it is; repeat to stack.")
    ] = None,
    after: Annotated[
        list[Path] | None, typer.Option("--after", help="Adapter that runs after it, as it is; repeat to stack.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    from ...adapters.artifact.adapter import the_detector
    from ...adapters.artifact.output import require_free
    from ...adapters.artifact.stack import require_fitted_stack, require_reading
    from ...adapters.artifact.store import load_adapter
    from ...adapters.errors import UsageError
    from ..calibration import Calibration, require_adjustable, require_detector_kept, tested_groups
    from ..data.records import load_records, require_pictures
    from ..data.sources import data_path, model_path
    from ..model.asking import require_answerable
    from ..model.shape import decoder_shape, require_adaptable, require_fitted_on
    from ..model.vlm import VLM
    from . import console

    folders = [*(beside or []), adapter, *(after or [])]
    require_free(out, overwrite=overwrite, inputs=[model, data, *folders])
    if not options.given:
        raise UsageError("There is no budget to keep.", "Give --max-over-refusal or --max-utility-loss.")
    loaded = [load_adapter(folder) for folder in folders]
    place = len(beside or [])
    before, moved, behind = loaded[:place], loaded[place], loaded[place + 1 :]
    require_adjustable(moved)
    require_detector_kept(moved, [*before, *behind], model=model, data=data, out=out)
    the_detector(loaded)
    require_fitted_stack(loaded, [str(folder) for folder in folders], model=model, data=data, allow=None)
    require_reading(loaded)
    records = load_records(data_path(data), **options.reading())
    used = [one for one in records if one.split != "test"]
    groups = tested_groups(options, used)
    require_pictures(records.of(groups.records))  # type: ignore[arg-type]  # they are among the records
    path = model_path(model)
    require_adaptable(loaded, decoder_shape(path), model, allow_wrong_base=None)
    require_answerable(model, used)
    for said in (records.told(), groups.told()):
        if said:
            console.warn(said)
    with console.work("comparing fingerprints") as doing:
        known = require_fitted_on(loaded, path, model, choice=False)
        doing("loading")
        vlm = VLM.from_pretrained(path, **options.loading())
        vlm.fingerprint = known
        doing("answering")
        found = Calibration(
            vlm,
            moved,
            tuple(before),
            tuple(used),
            Budget(
                **{name: getattr(options, name) for name in Budget.model_fields if name in options.model_fields_set}
            ),
            behind=tuple(behind),
            **({"batch_size": options.rows} if options.rows else {}),
        ).run(doing.count)
    found.save(out, overwrite=overwrite)
    value = {
        "adapter": str(out),
        "method": found.info.method,
        "budget": found.attachments["budget"],
        "calibration": found.attachments.get("calibration"),
    }
    stack = [word for folder in (*(beside or []), out, *(after or [])) for word in ("--adapter", folder)]
    then = console.command_line("eval", model, "--data", data, *stack)
    console.emit(value, as_json=as_json, human=_show, then=then)


def _show(console: Any, value: dict[str, Any]) -> None:
    from rich.markup import escape

    from .views import promised

    console.print(escape(f"{value['method']} → {value['adapter']}: {value['budget']['chosen']}."))
    console.print(escape(promised(value["budget"])))
