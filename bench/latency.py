"""Latency of an export over its unmodified base, with an A/A control: ``python bench/latency.py EXPORT BASE``.

Both folders are exports of the same base and precision; BASE was made without an adapter. Prints JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.errors import SafetykitError
from safetykit.bench.skeleton import arguments, run
from safetykit.export.document.latency import measure_latency
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.model.asking import request_of


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = arguments(__doc__)
    parser.add_argument("export", type=Path, help="export with adapters")
    parser.add_argument("base", type=Path, help="export of the same base without adapters")
    parser.add_argument("--data", type=Path, required=True, help="records to take the batch from")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--decode-steps", type=int, default=16)
    parser.add_argument("--provider", action="append", help="ONNX Runtime execution provider; may be repeated")
    options = parser.parse_args(given)
    providers = tuple(options.provider or CPU)
    try:
        records = load_records(options.data)
        # With a picture where there is one: that is the prefill people pay for.
        chosen = subset([record for record in records if record.image is not None] or records, options.batch)
        baked = OnnxVLM.from_pretrained(options.export, providers)
        unmodified = OnnxVLM.from_pretrained(options.base, providers)
        latency = measure_latency(
            baked,
            unmodified,
            [request_of(record) for record in chosen],
            control=OnnxVLM.from_pretrained(options.base, providers, verify=False),
            providers=providers,
            rounds=options.rounds,
            decode_steps=options.decode_steps,
        )
    except SafetykitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    sys.stdout.buffer.write(canonical_json(latency.model_dump(mode="json")))
    return 0


if __name__ == "__main__":
    run(main)
