"""`safetykit lora`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..model.options import PlaceOptions
from .common import reads_artifacts
from .derived import takes
from .options import Json, Model, Overwrite, WrongBase


@reads_artifacts
@takes(PlaceOptions)
def lora(
    model: Model,
    adapter: Annotated[list[Path], typer.Option("--adapter", help="Adapter folder; repeat to stack.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PEFT adapter folder to write.")],
    options: PlaceOptions,
    allow_wrong_base: WrongBase = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    from dataclasses import replace

    from ...adapters.artifact.output import require_free
    from ...adapters.artifact.store import load_adapter, require_weights
    from ...adapters.errors import UsageError
    from ..data.sources import model_path
    from ..model.folding import affine_maps, fold_all
    from ..model.lora import write_peft
    from ..model.shape import decoder_shape, require_adaptable, require_fitted_on
    from ..model.vlm import VLM
    from . import console

    require_free(out, overwrite=overwrite, inputs=[model, *adapter])
    loaded = [load_adapter(folder) for folder in adapter]
    path = model_path(model)
    require_adaptable(loaded, decoder_shape(path), model, allow_wrong_base=allow_wrong_base)
    for one in loaded:
        if one.branch:
            raise UsageError(
                f"{one.info.method} runs a branch, which is no LoRA.", "Export it with `safetykit export`."
            )
        affine_maps(one)
    with console.steps("loading"):
        if not allow_wrong_base:
            require_fitted_on(loaded, path, model)
        vlm = VLM.from_pretrained(path, **options.loading())
    for one in loaded if not allow_wrong_base else ():
        require_weights(one, vlm.on, model)
    folded = fold_all(vlm, loaded)
    together = replace(folded[0], updates=tuple(update for one in folded for update in one.updates))
    write_peft(vlm, together, out, overwrite=overwrite)
    value = {"folder": str(out), "adapters": [f"{one.info.method} ({one.info.variant})" for one in loaded]}
    console.emit(value, as_json=as_json, human=_show)


def _show(console, value) -> None:
    console.print(f"{' + '.join(value['adapters'])} as LoRA: {value['folder']}", markup=False)
    console.print("Load it with peft.PeftModel.from_pretrained(model, folder).", markup=False)
