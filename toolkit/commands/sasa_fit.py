"""Fitting a detector from the command line: SASA or the one-pass probe on a VLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.stack import describe_corrector
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import UsageError
from ...adapters.sasa.sasa import ProbeFitter, Variant, require_labels
from ...adapters.statistics.detector import Refusal
from ...adapters.statistics.probe import Space
from ..data.records import Record
from ..evaluation.evaluate import Progress
from ..evaluation.refusal import RefusalTokens
from ..model.second_pass import SecondPass
from ..model.vlm import VLM
from .fitting import fit_and_save, require_choices

if TYPE_CHECKING:
    from ..diagnosis.channel_map import ChannelMap


def fit_detector(
    kind: type[ProbeFitter],
    options: Mapping[str, Any],
    model: str,
    data: str,
    out: Path,
    *,
    channels: ChannelMap | None = None,
    refusal: str | None = None,
    corrected_by: Sequence[Path] | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Fit, save and show; options that are None keep the fitter's default.

    Args:
        channels: where the layers come from, if not from options or a choice.
        refusal: the fixed answer; by default the model's own most frequent refusal.
        corrected_by: adapters that are applied while fitting, and that the detector is to be stacked with.

    Raises:
        SafetykitError: whatever was wrong; nothing is written then.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if channels:
        given |= {"safety_layer": channels.safety_layer, "fused_layer": channels.fused_layer}
    require_choices(given, {"variant": Variant, "space": Space})
    fitter = kind(**given)
    correctors = describe_correctors(corrected_by or ())

    def make(vlm: VLM, records: list[Record], progress: Progress) -> Adapter:
        if channels:
            channels.require_base(vlm.fingerprint, str(vlm.path))
        fitter.places(vlm.base.n_layers)  # layers that do not exist are refused before anything runs
        require_labels(records)
        source = SecondPass(vlm, progress=progress)
        return fitter.fit(source, records, refusal_of(vlm, records, refusal), corrected_by=correctors)

    fit_and_save(model, data, out, make, corrected_by=corrected_by or (), overwrite=overwrite, as_json=as_json)


def refusal_of(vlm: VLM, records: Sequence[Record], text: str | None = None) -> Refusal:
    """``text`` with its first token, or the refusal that the model itself gives most often.

    Raises:
        UsageError: the text is empty, or the model refuses none of the harmful text records.
    """
    if text is None:
        own = RefusalTokens.find(vlm, records)
        return Refusal(own.text, own.first)
    tokens = vlm.inputs.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not text.strip() or not tokens:
        raise UsageError("The refusal is empty.", "Write what a refused user reads, or leave --refusal out.")
    return Refusal(text, int(tokens[0]))


def describe_correctors(folders: Sequence[Path]) -> list[dict[str, JsonValue]]:
    """What a detector's manifest says about the adapters it was fitted with.

    ``manifest_sha256`` is that of the corrector's manifest file, which holds the digest of every other file.

    Raises:
        UsageError: one of them is a detector itself.
    """
    found: list[dict[str, JsonValue]] = []
    for folder in folders:
        adapter = load_adapter(folder)
        if adapter.detector is not None:
            raise UsageError(f"{folder} is a detector itself.", "--with takes correctors; a request has one detector.")
        found.append(describe_corrector(adapter))
    return found


def map_for_layers(folder: Path, given: Mapping[str, Any]) -> ChannelMap:
    """The channel map that is to name the safety layer and the fused layer.

    Raises:
        UsageError: a layer is given as well.
        InvalidArtifact: the map is damaged.
    """
    from ..diagnosis.channel_map import ChannelMap

    if (given.get("safety_layer"), given.get("fused_layer")) != (None, None) or given.get("variant") == "unprojected":
        raise UsageError(
            "--map says where SASA acts, and so does another option.",
            "Leave out --map, or --safety-layer, --fused-layer and --variant unprojected.",
        )
    return ChannelMap.load(folder)
