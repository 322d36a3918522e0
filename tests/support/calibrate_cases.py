"""Every option of `calibrate` in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

from case import Case
from fit_checks import SPREAD, UNPACKED, recorded

CALIBRATIONS = [
    Case(
        f"calibrate {{model}} --adapter {{probe}} --data {{unpacked}} -o {{out}} --max-over-refusal 0.3 {UNPACKED}"
        " --device cpu --dtype float32 --batch-size 16 --json",
        lambda done, made: [
            "bad rows left out: 1" in done.err,
            done.value["calibration"][0]["false_positive_rate"] < 0.3,
            f"threshold {recorded(done)['detector']['threshold']:.4g}" == done.value["budget"]["chosen"],
        ],
    ),
    Case(
        f"calibrate {{model}} --adapter {{affine}} --with {{guard}} --data {{records}} -o {{taken}} --overwrite --json"
        f" --max-over-refusal 0.6 --confidence 0.6 {SPREAD}",
        lambda done, made: [
            "times the strength" in done.value["budget"]["chosen"],
            [one["method"] for one in recorded(done)["info"]["hyperparameters"]["calibrated_beside"]] == ["vlm-guard"],
        ],
    ),
    Case(
        "calibrate {model} --adapter {affine} --after {guard} --data {records} -o {out} --json"
        " --max-over-refusal 0.6 --confidence 0.6",
        lambda done, made: [
            recorded(done)["info"]["hyperparameters"]["calibrated_beside"] == [],
            [one["method"] for one in recorded(done)["info"]["hyperparameters"]["calibrated_before"]] == ["vlm-guard"],
            done.value["next"].endswith(f"--adapter {done.path} --adapter {made['guard']}"),
        ],
    ),
]
