"""How far float32 logits are from PyTorch's own float64 run: what parity in float32 can ask for at all.

    python bench/rounding.py MODEL --data DATA [--base-onnx EXPORT] [--records 64] [--half]

``--half`` adds PyTorch in float16, beside which an EXPORT in fp16 may be put.

With an export of the unmodified model its logits are compared with float64 as well, and so are the features that its
vision encoder makes of pictures: ``features_alone`` is what those do to the logits of a decoder in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from safetykit.bench.skeleton import arguments, emit, run
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.vlm import VLM

_LOGITS = ("pytorch", "pytorch_half", "onnx", "features_alone")


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--base-onnx", type=Path)
    parser.add_argument("--records", type=int, default=64)
    parser.add_argument("--half", action="store_true")
    options = parser.parse_args(given)
    vlm = VLM.from_pretrained(model_path(options.model))
    records = subset(load_records(data_path(options.data), ["test"]), options.records)
    inputs = vlm.inputs.prepare([request_of(record) for record in records])
    fed = vlm.arguments(inputs, cached_features=False)
    real = torch.from_numpy(inputs.attention_mask).bool()
    exact = copy.deepcopy(vlm.model).double()
    single = logits(vlm.model, fed)[real]
    double = logits(exact, fed)[real]
    found = {"records": len(records), "largest_logit": double.abs().max().item(), "pytorch": largest(single - double)}
    if options.half:
        found["pytorch_half"] = largest(logits(copy.deepcopy(vlm.model).half(), fed)[real] - double)
    if options.base_onnx:
        onnx_vlm = OnnxVLM.from_pretrained(options.base_onnx)
        state = onnx_vlm.prefill(inputs, all_logits=True)
        found["onnx"] = largest(torch.from_numpy(state.logits).double()[real] - double)
        if inputs.pictures:
            seen = torch.from_numpy(onnx_vlm.see(inputs.pictures).features).double().flatten(0, -2)
            embeds = exact.get_input_embeddings()(fed["input_ids"]).detach()
            with torch.inference_mode():
                given = {"pixel_values": fed["pixel_values"].double()}
                features = torch.cat([one.flatten(0, -2) for one in exact.get_image_features(**given).pooler_output])
                embeds = embeds.masked_scatter(torch.from_numpy(inputs.vision_mask)[..., None], seen)
                moved = exact(inputs_embeds=embeds, attention_mask=fed["attention_mask"], use_cache=False)
            found |= {"features": largest(seen - features), "features_alone": largest(moved.logits[real] - double)}
    errors = {name: value / found["largest_logit"] for name, value in found.items() if name in _LOGITS}
    emit({**found, "share_of_largest_logit": errors})


@torch.inference_mode()
def logits(model: torch.nn.Module, arguments: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of a model in its own precision, as float64."""
    if "pixel_values" in arguments:
        arguments = {**arguments, "pixel_values": arguments["pixel_values"].to(model.dtype)}
    return model(**arguments, use_cache=False).logits.double()


def largest(difference: torch.Tensor) -> float:
    """Largest magnitude."""
    return difference.abs().max().item()


if __name__ == "__main__":
    run(main)
