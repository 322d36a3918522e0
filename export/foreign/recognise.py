"""Which layout a folder of graphs has.

- **genai**: ``genai_config.json`` names the decoder. Its ``embedding`` and ``vision`` graphs are not used: that
  embedding mixes the pictures in by itself.
- **transformers.js**: ``decoder_model_merged``, ``embed_tokens`` and ``vision_encoder`` under ``onnx/``, each with a
  suffix for its type: none, ``_fp16``, ``_q4``, ``_q4f16``, ``_quantized``, ….
- **optimum**: a single ``model.onnx``, or the older ``decoder_model_merged.onnx``, beside ``config.json``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ...adapters.errors import InvalidArtifact, UsageError
from ..manifest import ForeignLayout, Precision

_SUFFIXES: dict[Precision, tuple[str, ...]] = {
    "fp32": ("",),
    "fp16": ("_fp16",),
    "int4": ("_q4", "_q4f16"),
    "int8": ("_quantized", "_int8", "_uint8"),
}
_DECODERS = ("decoder_model_merged", "decoder")


@dataclass(frozen=True)
class FoundGraphs:
    """Graph files of a folder; those that it lacks are None."""

    layout: ForeignLayout
    decoder: Path
    embed_tokens: Path | None = None
    vision_encoder: Path | None = None


def find_graphs(folder: Path, precision: Precision) -> FoundGraphs:
    """Recognise a folder; where it holds several precisions, choose ``precision``.

    Raises:
        UsageError: there is no such folder, its layout is not known, or it lacks that precision.
        InvalidArtifact: a configuration file is damaged, or names files that are not there.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.", "Pass a folder of base graphs with --base-onnx.")
    if (folder / "genai_config.json").is_file():
        return FoundGraphs("genai", _genai_decoder(folder))
    for place in (folder / "onnx", folder):
        if any(place.glob("decoder*.onnx")) and any(place.glob("embed_tokens*.onnx")):
            return _transformers_js(place, precision)
    for name in ("model.onnx", "decoder_model_merged.onnx"):
        if (folder / name).is_file():
            return FoundGraphs("optimum", folder / name)
    if (folder / "decoder_with_past_model.onnx").is_file():
        raise UsageError(
            f"{folder} holds two decoders, one without and one with a cache, that are not merged.",
            "Export again with a current optimum, which writes one model.onnx.",
        )
    raise UsageError(
        f"The layout of {folder} is not known: no safetykit.json, genai_config.json, onnx/decoder_model_merged*.onnx "
        "or model.onnx.",
        "Pass a folder made by safetykit, the ONNX Runtime GenAI builder or optimum, or a transformers.js repository.",
    )


def _genai_decoder(folder: Path) -> Path:
    path = folder / "genai_config.json"
    try:
        decoder = json.loads(path.read_bytes())["model"]["decoder"]
        name = decoder["filename"] if "pipeline" not in decoder else None
    except (ValueError, KeyError, TypeError):
        raise InvalidArtifact(f"{path} names no decoder.", "Build the model again.") from None
    if name is None:
        raise UsageError(
            f"The decoder of {folder} is a pipeline of several graphs.",
            "Build it as one graph: --execution_provider cpu.",
        )
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise InvalidArtifact(f"{path} names the decoder {name!r}, which is not there.", "Build the model again.")
    return folder / name


def _transformers_js(place: Path, precision: Precision) -> FoundGraphs:
    suffixes = _SUFFIXES[precision]
    decoder = _first(place, _DECODERS, suffixes)
    if decoder is None:
        there = ", ".join(sorted(path.name for path in place.glob("decoder*.onnx")))
        raise UsageError(
            f"{place} has no {precision} decoder, only {there}.", "Pass the --precision that one of them has."
        )
    suffix = decoder.stem.removeprefix(next(name for name in _DECODERS if decoder.stem.startswith(name)))
    half = "_fp16" if suffix.endswith("f16") else ""
    nearest = tuple(dict.fromkeys((suffix, half, "")))  # not every graph of a repository is quantised
    return FoundGraphs(
        "transformers.js",
        decoder,
        embed_tokens=_first(place, ("embed_tokens",), nearest),
        vision_encoder=_first(place, ("vision_encoder",), nearest),
    )


def _first(place: Path, names: tuple[str, ...], suffixes: tuple[str, ...]) -> Path | None:
    found = (place / f"{name}{suffix}.onnx" for suffix in suffixes for name in names)
    return next((path for path in found if path.is_file()), None)
