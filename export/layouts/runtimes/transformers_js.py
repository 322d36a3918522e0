"""The layout of transformers.js, for browsers and Node.

    onnx/vision_encoder[_DTYPE].onnx, onnx/embed_tokens[…].onnx, onnx/decoder_model_merged[…].onnx
    <graph>_data (the base's weights), <graph>_data_1 (the adapter's)
    config.json with ``transformers.js_config``, preprocessor_config.json, tokenizer with its chat template
    browser/index.html and its files: a page that runs the folder in a browser

It creates the empty KV cache from the shapes that the decoder states, in which it knows the axis ``batch_size`` only.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...manifest import GRAPHS, ExportManifest, Graph
from ...names import ATTENTION_MASK, INPUT_IDS, INPUTS_EMBEDS, PAST, POSITION_IDS
from ..files import cache_layers, graph_dtype, read_json, write_json
from ..layout import RuntimeLayout
from ..registry import register

if TYPE_CHECKING:
    import onnx_ir as ir

_STEMS: dict[Graph, str] = {
    "vision_encoder": "vision_encoder",
    "embed_tokens": "embed_tokens",
    "decoder": "decoder_model_merged",
}
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "q4": "_q4", "q4f16": "_q4f16"}
_PAGE = Path(__file__).with_name("browser")
_DECODER = (INPUTS_EMBEDS, ATTENTION_MASK, POSITION_IDS, PAST)


@register
class TransformersJs(RuntimeLayout):
    """Browsers and Node. A family states what the vision encoder is fed; those that state nothing were not tried."""

    name, title = "transformers.js", "transformers.js"
    template = RuntimeLayout.own_template("transformers_js")
    own_loop = embeddings_only = some_families = True

    def paths(self, models: Mapping[Graph, ir.Model]) -> dict[Graph, str]:
        return {name: f"onnx/{stem}{_SUFFIXES[graph_dtype(models[name])]}.onnx" for name, stem in _STEMS.items()}

    def data_name(self, graph: str, number: int) -> str:
        """What it loads beside a graph: ``<graph>_data``, ``<graph>_data_1``, …"""
        return f"{graph}_data" if number == 0 else f"{graph}_data_{number}"

    def change(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Name the batch axis as it does, and refuse what it cannot run."""
        from ..carry import require_fed
        from ..surgery import rename_axis

        feeds = self.facts(read_json(folder, "config.json")["model_type"])
        require_fed(models["vision_encoder"], "vision_encoder", feeds, self.name)
        require_fed(models["embed_tokens"], "embed_tokens", (INPUT_IDS,), self.name)
        require_fed(models["decoder"], "decoder", _DECODER, self.name)
        for name in ("embed_tokens", "decoder"):
            rename_axis(models[name], "batch", "batch_size")

    def finish(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Write the configuration it reads; the files that Python reads keep their meaning."""
        dtypes = {_STEMS[name]: graph_dtype(models[name]) for name in GRAPHS}
        chunks = {}
        for name in GRAPHS:
            graph = folder / manifest.graph_file(name)
            chunks[graph.name] = sum((graph.parent / self.data_name(graph.name, number)).exists() for number in (0, 1))
        config = read_json(folder, "config.json")
        _count_layers(config, cache_layers(models["decoder"]))
        config["transformers.js_config"] = {
            "dtype": dtypes,
            "use_external_data_format": chunks,
            "kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"},
        }
        write_json(folder, "config.json", config)
        _write_processor(folder)
        shutil.copytree(_PAGE, folder / _PAGE.name)
        template = folder / "chat_template.jinja"
        tokenizer = read_json(folder, "tokenizer_config.json")
        if template.is_file() and "chat_template" not in tokenizer:
            write_json(folder, "tokenizer_config.json", {**tokenizer, "chat_template": template.read_text("utf-8")})


def _count_layers(config: dict[str, Any], layers: int) -> None:
    """It creates as many layers of cache as the configuration counts; one may hold gates instead of keys."""
    text = config.get("text_config", config)
    if missing := layers - int(text["num_hidden_layers"]):
        text["num_hidden_layers"] = layers
        if kinds := text.get("layer_types"):
            text["layer_types"] = [*kinds, *kinds[-1:] * missing]


def _write_processor(folder: Path) -> None:
    """Flat ``preprocessor_config.json``, and a count of image tokens that both languages work out alike."""
    processor = read_json(folder, "processor_config.json")
    pictures = processor.get("image_processor") or read_json(folder, "preprocessor_config.json")
    kind = str(pictures.get("image_processor_type", "")).removesuffix("Pil").removesuffix("Fast")
    name = processor.get("processor_class") or pictures.get("processor_class")
    write_json(folder, "preprocessor_config.json", {**pictures, "image_processor_type": kind, "processor_class": name})
    # Python takes one token off for the strategy `default`, which transformers.js leaves out of account.
    if processor.get("vision_feature_select_strategy") == "default":
        added = int(processor.get("num_additional_image_tokens", 0)) - 1
        changes = {"num_additional_image_tokens": added, "vision_feature_select_strategy": "full"}
        write_json(folder, "processor_config.json", {**processor, **changes})
