"""How far PyTorch's float32 logits are from its own float64 run: what parity in float32 can ask for at all.

    python bench/rounding.py MODEL --data DATA
"""

from __future__ import annotations

import argparse
import copy
import json

import torch

from safetykit.toolkit.inputs import Request
from safetykit.toolkit.records import load_records, subset
from safetykit.toolkit.sources import data_path, model_path
from safetykit.toolkit.vlm import VLM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--records", type=int, default=64)
    options = parser.parse_args()
    vlm = VLM.from_pretrained(model_path(options.model))
    records = subset(load_records(data_path(options.data), ["test"]), options.records)
    inputs = vlm.inputs.prepare([Request(record.prompt, record.picture()) for record in records])
    arguments = vlm.arguments(inputs, cached_features=False)
    real = torch.from_numpy(inputs.attention_mask).bool()
    with torch.inference_mode():
        single = vlm.model(**arguments, use_cache=False).logits[real].double()
        if "pixel_values" in arguments:
            arguments["pixel_values"] = arguments["pixel_values"].double()
        double = copy.deepcopy(vlm.model).double()(**arguments, use_cache=False).logits[real]
    error, scale = (single - double).abs().max().item(), double.abs().max().item()
    print(json.dumps({"records": len(records), "error": error, "largest_logit": scale, "relative": error / scale}, indent=2))


if __name__ == "__main__":
    main()
