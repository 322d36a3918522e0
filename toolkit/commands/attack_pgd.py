"""`safetykit attack pgd`."""

from __future__ import annotations

from typing import Any

from ..attacks.options import PgdOptions
from .common import reads_artifacts
from .data_records import RecordsOut
from .derived import takes
from .options import Adapters, Json, Model, Overwrite


@reads_artifacts
@takes(PgdOptions)
def pgd(
    model: Model,
    out: RecordsOut,
    options: PgdOptions,
    adapter: Adapters = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Look for pictures that make a model answer harmful records, by projected gradient descent.

    For evaluation: the folder of records is answered by `safetykit eval`, on the checkpoint and on exports. With
    --adapter the gradients go through the adapters, so that a defence that only hides them is found out. An interrupted
    attack goes on where it stopped.
    """
    from ...adapters.artifact.output import claimed
    from ...adapters.artifact.store import load_adapter
    from ...adapters.errors import UsageError
    from ...adapters.retrieval.retrieval import retrieval_of
    from ..attacks.adversarial import attack, identity, journal_of
    from ..attacks.choosing import chosen
    from ..attacks.pixels import PixelMaps
    from ..data.journal import require_journal
    from ..data.sources import data_path, model_path
    from ..model.chat_template import require_chat_template
    from ..model.inputs import InputProcessor
    from ..model.opening import opened
    from ..model.peft_folder import checkpoint_path
    from . import console

    loaded = [load_adapter(folder) for folder in adapter or ()]
    _require_use(loaded, options)
    if retrieval_of(loaded) is not None:
        raise UsageError(
            "No gradient goes through texts that are retrieved for a picture.", "Attack without that adapter."
        )
    inputs = [data_path(options.data), options.picture, *(adapter or ())]
    with (
        claimed(out, overwrite=overwrite, inputs=inputs, spent=[journal_of(out)]),
        console.work("reading") as doing,
    ):
        found = chosen(options)
        require_chat_template(model_path(model))
        PixelMaps(InputProcessor.from_pretrained(checkpoint_path(model))).require()
        require_journal(journal_of(out), identity(found, options))
        with opened(
            model,
            loaded,
            [str(folder) for folder in adapter or ()],
            data=options.data,
            loading=options.loading(),
            say=doing,
            allow_wrong_base=options.allow_wrong_base,
            allow_uncorrected_detector=options.allow_uncorrected_detector,
        ) as ran:
            made = attack(
                ran, found, options, out, adaptive=bool(loaded), overwrite=overwrite, progress=doing.count, say=doing
            )
    value = {
        "records": str(out),
        "attack": made.name,
        "counts": dict(made.counts),
        "left_out": dict(found.left_out),
        "loss": made.losses,
    }
    stack = [word for folder in adapter or () for word in ("--adapter", folder)]
    then = console.command_line("eval", model, "--data", out, "--split", options.split, *stack)
    console.emit(value, as_json=as_json, human=_show, then=then)


def _require_use(adapters: list[Any], options: PgdOptions) -> None:
    """Refuse options that do nothing with these adapters."""
    from ...adapters.ops.gating import GatedOp

    options.require_use(("allow_wrong_base",), bool(adapters), "an adapter")
    detects = any(adapter.detector is not None for adapter in adapters)
    options.require_use(("allow_uncorrected_detector",), detects, "a detector")
    gated = any(isinstance(item.make_op(), GatedOp) for adapter in adapters for item in adapter.interventions)
    options.require_use(("evade",), detects or gated, "an adapter that has a gate or a detector")


def _show(console: Any, value: dict[str, Any]) -> None:
    from .views import facts

    rows = [(name, str(count)) for name, count in sorted(value["counts"].items())]
    rows += [(f"left out: {name}", str(count)) for name, count in sorted(value["left_out"].items())]
    loss = value["loss"]
    rows += [("loss, before → after → in 8 bits", " → ".join(f"{loss[name]:.3f}" for name in loss))]
    facts(console, f"{value['attack']} → {value['records']}", rows)
