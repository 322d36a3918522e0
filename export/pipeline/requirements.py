"""The rules of a plan, each of which refuses one kind of export that could not succeed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.errors import SafetykitError, UsageError, WrongBase
from ...adapters.retrieval.retrieval import retrieval_of
from ...toolkit.data.records import require_pictures
from ...toolkit.families import family_of
from ...toolkit.model.asking import require_answerable
from ...toolkit.model.folding import affine_maps
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.options import AUTO, LoadOptions, PlaceOptions
from ...toolkit.model.shape import Shape, require_adaptable, require_same_shape
from ..base.fitted_on import weights_of
from ..base.int4 import INT4_CHOICES
from ..base.quantise import quantiser
from ..foreign.recognise import find_graphs
from ..manifest import LAYOUT, read_manifest
from ..parity.compare import MIXED, parity_requests
from ..parity.recalibrate import require_thresholds
from ..runtime.sessions import open_session
from ..surgery.adapt import place
from ..surgery.swappable import require_swappable
from .options import ExportOptions

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from .source import Source

__all__ = [
    "require_base_graphs",
    "require_computable",
    "require_mode",
    "require_one_base",
    "require_pictures",
    "require_prompts",
    "require_providers",
    "require_use",
    "require_weights",
]

_ROUNDED = ("int4", "int8")
_RESTED = ("vision_encoder", "embed_tokens")  # what is exported from the checkpoint where others' graphs lack it
_BASE_GRAPHS = "Export the base graphs of this model, or leave out --base-onnx."


def require_use(
    options: ExportOptions, adapters: Sequence[Adapter], records: Sequence[Record], calibration: Sequence[Record]
) -> None:
    """Refuse options that were given and would do nothing here."""
    if options.recalibrate and not (records or calibration):
        raise UsageError("--recalibrate needs records.", "Pass --data with a calibration split.")
    rounds = options.precision == "int4" and options.base_onnx is None
    options.require_use(INT4_CHOICES, rounds, "int4 graphs that are made here (--precision int4, no --base-onnx)")
    options.require_use(("split", "limit", "skip_bad_rows", "workers"), options.data is not None, "--data")
    answering = ("max_new_tokens", "max_flips", "batch_size", "judges")
    options.require_use(answering, bool(records), "records to answer (--data)")
    options.require_use(("judge_device", "judge_dtype"), bool(options.judges), "a judge that is a model (--judge)")
    if options.judges:
        options.opened()
    adapted = ("mode", "enforce", "recalibrate", "gate_state", "canaries")
    options.require_use(adapted, bool(adapters), "an adapter (--adapter)")
    options.require_use(("allow_uncorrected_detector",), the_detector(adapters) is not None, "a detector")
    based = bool(adapters) or options.base_onnx is not None
    options.require_use(("allow_wrong_base",), based, "an adapter or base graphs")
    held = any(item.holds for adapter in adapters for item in adapter.interventions)
    options.require_use(("gate_state",), held, "a gate that is held through the answer")
    external = retrieval_of(adapters)
    searches = external is not None and external[0].external
    options.require_use(("external_index",), searches, "an adapter that searches an index outside the graph")
    if options.recalibrate and options.data is not None and options.split == "calibration":
        raise UsageError(
            "The calibration split cannot both set thresholds (--recalibrate) and be answered (--split).",
            "Answer another split.",
        )
    if options.recalibrate:
        require_thresholds(adapters, calibration)


def require_one_base(source: Source, options: ExportOptions) -> None:
    """Refuse adapters of other models, as far as it shows without reading the weights, and sites that are not there."""
    shape, allowed = Shape.of(source.config), options.allow_wrong_base
    require_adaptable(source.adapters, shape, source.called, allow_wrong_base=allowed)
    if allowed:
        return
    found = {adapter.info.base.fingerprint: adapter.info for adapter in source.adapters}
    wanted = weights_of([adapter.info for adapter in source.adapters])
    if wanted is not None and wanted.precision != options.precision:
        raise WrongBase(
            f"An adapter was fitted on {wanted.precision} weights, and the export is {options.precision}.",
            f"Pass --precision {wanted.precision} and --base-onnx with the folder that it was fitted on.",
        )
    if len(found) > 1:
        methods = " and ".join(f"{info.method} on model {name[:12]}" for name, info in found.items())
        raise WrongBase(f"The adapters were fitted on several models: {methods}.", "Fit them all on this model.")


def require_mode(adapters: Sequence[Adapter], options: ExportOptions) -> None:
    """Refuse what cannot be folded, or swapped."""
    if options.mode == "fold":
        if options.precision in _ROUNDED:
            raise UsageError(
                f"Folding into {options.precision} weights would round the adapter away with them.",
                "Use --mode bake, whose ops stay in full precision, or fold in fp32 or fp16.",
            )
        if not any(adapter.interventions for adapter in adapters):
            raise UsageError(
                "There is nothing to fold: the adapters have no intervention.", "Export them with --mode bake."
            )
        for adapter in adapters:
            affine_maps(adapter)
    if options.mode == "hot-swap":
        require_swappable(place(adapters))


def require_base_graphs(source: Source, options: ExportOptions) -> None:
    """Refuse base graphs that are not there, hold an adapter, or have another precision."""
    if options.base_onnx is None:
        if options.precision == "int8":
            raise UsageError(
                "safetykit does not quantise to int8.", "Pass --precision int4, or an int8 decoder with --base-onnx."
            )
        if options.precision == "int4":
            quantiser()
        return
    folder = options.base_onnx
    if not (folder / LAYOUT.manifest).is_file():
        found = find_graphs(folder, options.precision)
        family_of(source.config, [name for name in _RESTED if getattr(found, name) is None])
        return
    manifest = read_manifest(folder, verify=False)
    what = f"The base graphs in {folder} were exported from"
    require_same_shape(manifest.base, Shape.of(source.config), what, source.called, _BASE_GRAPHS)
    if manifest.mode != "base":
        raise UsageError(
            f"The graphs in {folder} hold an adapter already.",
            "Start from unmodified graphs and give all adapters at once: --adapter A --adapter B.",
        )
    if manifest.layout != "onnx":
        raise UsageError(
            f"The base graphs in {folder} are arranged for {manifest.layout}.", "Export them with --layout onnx."
        )
    if manifest.precision != options.precision:
        raise UsageError(
            f"The base graphs in {folder} are {manifest.precision}, not {options.precision}.",
            f"Pass --precision {manifest.precision}, or leave out --base-onnx.",
        )
    for adapter in source.adapters if not options.allow_wrong_base else ():
        if adapter.info.base.fingerprint != manifest.base.fingerprint:
            require_same_base(folder, manifest.base.fingerprint, adapter.info.base.fingerprint, "the adapter's base")


def require_weights(source: Source, options: ExportOptions) -> None:
    """Refuse a quantised checkpoint whose weights are to be exported and cannot be, or whose package is missing."""
    from ...toolkit.model.quantised import require_packages, require_plain

    check = require_plain if options.base_onnx is None else require_packages
    check(source.config, source.called)


def require_computable(checkpoint: Path, options: PlaceOptions) -> None:
    """Refuse a device that is not there, and to compare in float32 where PyTorch cannot: 16 bits, spread over devices.

    Args:
        options: how the checkpoint is loaded.

    Raises:
        UsageError: there is no such device; or it is spread, as was asked for or as no device holds it, and no type
            was chosen.
    """
    from ...toolkit.model.placement import Placement, own_dtype

    stored, placed = own_dtype(checkpoint), Placement.of(LoadOptions(**options.loading()), checkpoint)
    if options.dtype != AUTO or stored not in ("bfloat16", "float16"):
        return
    if placed.device_map is not None:
        raise UsageError(
            f"Parity computes in float32, and a model that is spread over devices only in the type it is loaded in: "
            f"{checkpoint.name} has {stored}.",
            f"Pass --dtype float32, which doubles it, or --dtype {stored}, which allows for its rounding.",
        )


def require_same_base(folder: Path, found: str, wanted: str, name: str) -> None:
    """Refuse base graphs of another model.

    Raises:
        WrongBase: the fingerprints differ.
    """
    if found != wanted:
        raise WrongBase(
            f"The base graphs in {folder} were exported from model {found[:12]}, but {name} is {wanted[:12]}.",
            _BASE_GRAPHS,
        )


def require_providers(providers: Sequence[str]) -> None:
    """Open a session that computes one matrix product under exactly these providers."""
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    open_session(model.SerializeToString(), providers)


def require_prompts(inputs: InputProcessor, records: Sequence[Record], checkpoint: str, *, own: bool) -> None:
    """Prepare one padded batch of the kind that parity runs: it needs a chat template, a pad token and a processor.

    And conversations of each form that the records have, which the template may not take.

    Args:
        own: the vision graph is exported here, so that pictures must have the sizes that it will read.
    """
    require_answerable(checkpoint, records, inputs)
    try:
        prepared = inputs.prepare(parity_requests(records)[MIXED])
        if own:
            _require_sizes(inputs, prepared.pictures)
    except SafetykitError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # whatever a processor says of its files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"{checkpoint} cannot prepare a batch of prompts and pictures: {reason}",
            "It needs a chat template and a tokenizer with a pad token; see tokenizer_config.json.",
        ) from None


def _require_sizes(inputs: InputProcessor, pictures: Mapping[str, np.ndarray]) -> None:
    family, config = inputs.family, inputs.config
    wanted = {one.name: one.shape for one in family.vision_inputs(config)}
    for feeds in family.vision_calls(config, pictures):
        for name, array in feeds.items():
            sizes = [
                size if isinstance(size, int) else found for size, found in zip(wanted[name], array.shape, strict=False)
            ]
            if sizes != list(array.shape) or len(sizes) != len(wanted[name]):
                raise UsageError(
                    f"The processor makes {name} of shape {' x '.join(map(str, array.shape))}, and the exported tower "
                    f"reads {' x '.join(map(str, wanted[name]))}.",
                    "Set the size of pictures in the processor's configuration to the tower's.",
                )
