"""The layout of ONNX Runtime GenAI: the graphs as they are, one that merges pictures into the embeddings, its files.

    vision_encoder.onnx, embed_tokens.onnx, decoder.onnx    with their data, as in the layout ``onnx``
    embedding.onnx                                          embed_tokens with image features put in; shares its data
    genai_config.json, vision_processor.json

GenAI knows VLMs by type. One whose decoder reads embeddings with plain positions runs under ``gemma3``, whatever its
architecture: token embedding, vision encoder and decoder are called in turn. The type's own prompt processor writes
Gemma's image tokens, so that token ids and pixels of other families are handed over by ``Generator.set_inputs``.
``vision_processor.json`` is the checkpoint's way to pixels in its words; version 0.18 stretches a picture where the
checkpoint keeps its shape, so that only pictures of the model's own shape come out the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...manifest import LAYOUT, ExportManifest, Graph
from ...names import (
    ATTENTION_MASK,
    IMAGE_FEATURES,
    INPUT_IDS,
    INPUTS_EMBEDS,
    LOGITS,
    PAST,
    PIXEL_VALUES,
    POSITION_IDS,
    past,
    present,
)
from ..files import cache_layers, read_json, write_json
from ..layout import RuntimeLayout
from ..registry import register

if TYPE_CHECKING:
    import onnx_ir as ir

    from ....toolkit.model.requests import Inputs
    from ...parity.gap import Gap
    from ...runtime.onnx_vlm import OnnxVLM

CONFIG, PROCESSOR, EMBEDDING = "genai_config.json", "vision_processor.json", "embedding.onnx"
_DECODER = (INPUTS_EMBEDS, ATTENTION_MASK, POSITION_IDS, PAST)
_INTERPOLATION = {0: "NEAREST", 1: "LANCZOS", 2: "LINEAR", 3: "CUBIC"}


@register
class GenAI(RuntimeLayout):
    """ONNX Runtime GenAI. A family states as which of its types it runs; others it does not know, or feeds in ways that
    were not tried."""

    name, title = "genai", "ONNX Runtime GenAI"
    template = RuntimeLayout.own_template("genai")
    own_loop = embeddings_only = some_families = True

    def change(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Refuse what it cannot run, and write the embedding graph."""
        import onnx_ir as ir

        from ...base.logits import give_all_logits
        from ..carry import require_fed
        from ..surgery import flatten_features, merge_features

        require_fed(models["vision_encoder"], "vision_encoder", (PIXEL_VALUES,), self.name)
        require_fed(models["embed_tokens"], "embed_tokens", (INPUT_IDS,), self.name)
        require_fed(models["decoder"], "decoder", _DECODER, self.name)
        give_all_logits(models["decoder"])  # it makes room for all of them before it asks
        # Of rank 2, because that is how it hands over the features of no picture at all.
        features = flatten_features(models["vision_encoder"])
        embedding = models["embed_tokens"].clone()
        merge_features(embedding, manifest.image_token_id, ir.val(IMAGE_FEATURES, features.dtype, features.shape))
        ir.save(embedding, folder / EMBEDDING)

    def compare(self, vlm: OnnxVLM, inputs: Inputs) -> Gap:
        """The embedding graph that puts pictures in itself, against embeddings and features put together here."""
        import numpy as np

        from ...parity.gap import Gap
        from ...runtime.sessions import open_session

        folder, ids = vlm.path, {INPUT_IDS: inputs.input_ids}
        (embeds,) = open_session(folder / LAYOUT.embed_tokens).run(None, ids)
        features = np.zeros((0, embeds.shape[-1]), embeds.dtype)
        if inputs.pictures:
            features = vlm.see(inputs.pictures).features
        (merged,) = open_session(folder / EMBEDDING).run(None, {**ids, IMAGE_FEATURES: features})
        embeds[inputs.vision_mask] = features
        return Gap.between(embeds, merged)

    def finish(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Write its configuration files."""
        config = read_json(folder, "config.json")
        text, generation = config.get("text_config", {}), read_json(folder, "generation_config.json")
        context = int(text.get("max_position_embeddings") or config.get("max_position_embeddings") or 2048)
        found = {**_tokens(text), **_tokens(config), **_tokens(generation)}
        eos = found.get("eos_token_id", 0)
        first = eos[0] if isinstance(eos, list) else eos
        value: dict[str, Any] = {
            "model": {
                "type": self.facts(config["model_type"]),
                "context_length": context,
                "vocab_size": _last(models["decoder"], LOGITS),
                "bos_token_id": found.get("bos_token_id", first),
                "eos_token_id": eos,
                "pad_token_id": found.get("pad_token_id", first),
                "image_token_id": manifest.image_token_id,
                "decoder": {
                    "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                    "filename": LAYOUT.decoder,
                    "hidden_size": _last(models["embed_tokens"], INPUTS_EMBEDS),
                    "head_size": manifest.head_dim,
                    "num_attention_heads": int(text.get("num_attention_heads") or manifest.n_kv_heads),
                    "num_key_value_heads": manifest.n_kv_heads,
                    "num_hidden_layers": cache_layers(models["decoder"]),
                    "inputs": {
                        "inputs_embeds": INPUTS_EMBEDS,
                        "attention_mask": ATTENTION_MASK,
                        "position_ids": POSITION_IDS,
                        "past_key_names": past("%d", "key"),
                        "past_value_names": past("%d", "value"),
                    },
                    "outputs": {
                        "logits": LOGITS,
                        "present_key_names": present("%d", "key"),
                        "present_value_names": present("%d", "value"),
                    },
                },
                "embedding": {
                    "filename": EMBEDDING,
                    "inputs": {"input_ids": INPUT_IDS, "image_features": IMAGE_FEATURES},
                    "outputs": {"inputs_embeds": INPUTS_EMBEDS},
                },
                "vision": {
                    "filename": LAYOUT.vision_encoder,
                    "config_filename": PROCESSOR,
                    "inputs": {"pixel_values": PIXEL_VALUES},
                    "outputs": {"image_features": IMAGE_FEATURES},
                },
            },
            # A shared buffer for past and present needs attention nodes that write into it; these graphs concatenate.
            "search": {
                "do_sample": False,
                "max_length": context,
                "num_beams": 1,
                "past_present_share_buffer": False,
            },
        }
        write_json(folder, CONFIG, value)
        write_json(folder, PROCESSOR, {"processor": {"name": "image_processing", "transforms": _transforms(folder)}})


def _transforms(folder: Path) -> list[dict[str, Any]]:
    """The picture's way to pixel values, step by step, as the checkpoint's own processor does it."""
    found = read_json(folder, "processor_config.json").get("image_processor")
    found = found or read_json(folder, "preprocessor_config.json")
    size, crop = found.get("size", {}), found.get("crop_size", {})
    edge = size.get("shortest_edge")
    steps: list[tuple[str, dict[str, Any]]] = [("DecodeImage", {"color_space": "RGB"})]
    if found.get("do_resize", True):
        width, height = (edge, edge) if edge else (size.get("width"), size.get("height"))
        kind = _INTERPOLATION.get(found.get("resample", 3), "CUBIC")
        sizes = {"width": width, "height": height, "keep_aspect_ratio": int(bool(edge))}
        steps.append(("Resize", {"interpolation": kind, **sizes}))
    if found.get("do_center_crop"):
        steps.append(("CenterCrop", {"width": crop["width"], "height": crop["height"]}))
    if found.get("do_rescale", True):
        steps.append(("Rescale", {"rescale_factor": found.get("rescale_factor", 1 / 255)}))
    if found.get("do_normalize", True):
        mean, std = ([float(number) for number in found[name]] for name in ("image_mean", "image_std"))
        steps.append(("Normalize", {"mean": mean, "std": std}))
    steps.append(("Permute3D", {"dims": [2, 0, 1]}))
    return [{"operation": {"name": kind.lower(), "type": kind, "attrs": attributes}} for kind, attributes in steps]


def _last(model: ir.Model, name: str) -> int:
    """The last size of an output."""
    shape = next(value.shape for value in model.graph.outputs if value.name == name)
    assert shape is not None
    return int(shape[-1])


def _tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {name: config[name] for name in names if config.get(name) is not None}
