"""What shows that a fit took its options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workshop import Outcome, Workshop


def chosen(**wanted: Any) -> Callable[[Outcome, Workshop], Any]:
    """The manifest records these settings."""

    def check(done: Outcome, made: Workshop) -> None:
        recorded = done.value["hyperparameters"]
        for name, value in wanted.items():
            found = recorded[name]
            found = list(found) if isinstance(found, tuple) else found
            assert found == value, (name, found, value)

    return check


def recorded(done: Outcome) -> dict[str, Any]:
    return json.loads((done.path / "manifest.json").read_text())


SPREAD = "--device-map auto --max-memory cpu=2GiB"  # on one device, which holds all of it


def ran(dtype: str = "float32", spread: bool = False) -> Callable[[Outcome, Workshop], Any]:
    """The manifest records what the model ran in, and on what."""

    def check(done: Outcome, made: Workshop) -> bool:
        found = recorded(done)["info"]["base"]["ran"]
        return found["dtype"] == dtype and found["device"] == "cpu" and found["spread"] == spread

    return check


UNPACKED = "--skip-bad-rows --workers 2"  # of Parquet with one bad row


def left_out(done: Outcome, made: Workshop) -> bool:
    """The manifest counts the bad row, and the rest was fitted on as if it had never been there."""
    found = recorded(done)["info"]["data"]["counts"]
    return found["bad rows left out"] == 1 and "bad rows left out: 1" in done.err


def on_the_base(done: Outcome, made: Workshop) -> bool:
    """The manifest names the int4 base's weights."""
    files = json.loads((Path(made["int4_base"]) / "safetykit.json").read_text())["files"]
    return recorded(done)["info"]["base"]["on"] == {"precision": "int4", "sha256": files["decoder.onnx.data"]}


def opened_by_the_probe(done: Outcome) -> bool:
    """Every op is opened by a probe, the manifest names it, and the calibration shows how often it opens."""
    told, found = done.value["hyperparameters"]["gated_by"], recorded(done)["interventions"]
    assert (told["method"], told["layers"]) == ("one-pass", [4])
    assert all(one["op"].endswith("ByProbe") for one in found)
    assert {one["gate"] for one in found if one["phase"] != "prefill"} <= {"held"}
    return all(row["what"].startswith("gate at") for row in done.value["calibration"])


def differs_from(done: Outcome, adapter: str) -> bool:
    """The fit's tensors are others than those of the adapter in a folder."""
    name = "adapter.safetensors"
    return (done.path / name).read_bytes() != (Path(adapter) / name).read_bytes()


FIT = "--data {records} -o {out} --json"
REFUSAL = "--refusal 'sorry .'"
