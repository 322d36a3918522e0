"""Every option of `safetykit attack` in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
from case import Case
from fit_checks import SPREAD, UNPACKED
from PIL import Image

from safetykit.toolkit.attacks.options import SEVERITIES, Kind
from safetykit.toolkit.data.records import load_records

KINDS = get_args(Kind)


def _source(done):
    return json.loads((done.path / "source.json").read_text())


def _settings(done, **wanted):
    return {name: _source(done)["settings"][name] for name in wanted} == wanted


def _grey(done):
    """How far pictures of requests in text are from the grey that they began with."""
    shown = [np.asarray(one.picture()).astype(int) for one in load_records(done.path) if "from:text" in one.tags]
    return max(np.abs(one - 127).max() for one in shown)


ATTACKS = [
    Case(
        "attack pgd {tiny} --data {records} -o {out} --objective jailbreak --epsilon 8/255 --steps 3 --step-size 0.01"
        " --seed 3 --limit 4 --batch-size 1 --split test --device cpu --dtype float32 --json",
        lambda done, made: [
            done.value["attack"] == "pgd-eps8" and done.value["counts"] == {"test/adversarial/harmful": 4},
            done.value["loss"]["after"] < done.value["loss"]["before"],
            _settings(done, epsilon="8/255", steps=3, step_size="0.01", seed=3, batch_size="1"),
            _source(done)["of"]["device or type"]["dtype"] == "float32",
            0 < _grey(done) <= 8,
            {one.carrier for one in load_records(done.path)} == {"adversarial"},
        ],
    ),
    Case(
        "attack pgd {tiny} --data {unpacked} -o {out} --universal --objective toxic --target 'this is it'"
        " --target-tokens 1 --epsilon none --steps 2 --picture {grey} --limit 3 --split fit"
        f" {UNPACKED} {SPREAD} --json",
        lambda done, made: [
            done.value["attack"] == "pgd-none-toxic-universal",
            _settings(done, target="this is it", target_tokens=1, universal=True, device_map="auto"),
        ],
    ),
    Case(
        "attack pgd {model} --data {records} -o {taken} --overwrite --split calibration --steps 1 --limit 2"
        " --adapter {guard} --adapter {probe} --allow-uncorrected-detector --evade 2 --json",
        lambda done, made: [
            done.value["attack"] == "pgd-eps16-adaptive" and _settings(done, evade=2.0),
            {one.split for one in load_records(done.path)} == {"calibration"},
            len(_source(done)["of"]["adapters"]) == 2,
        ],
    ),
    Case(
        "attack pgd reference:severe --data {records} -o {out} --objective refusal --steps 1 --limit 2"
        " --adapter {guard} --allow-wrong-base --json",
        lambda done, made: done.value["attack"] == "pgd-eps16-refusal-adaptive",
    ),
    Case(
        f"attack corrupt {{records}} -o {{taken}} --overwrite --split fit --limit 1 --seed 3 --json"
        f" {' '.join(f'--kind {kind}' for kind in KINDS)} {' '.join(f'--severity {one}' for one in SEVERITIES)}",
        lambda done, made: [
            done.value["made"] == {f"{kind}-{one}": 1 for kind in KINDS for one in SEVERITIES},
            _source(done)["seed"] == 3 and next(iter(done.value["counts"])).startswith("fit/"),
        ],
    ),
    Case(
        f"attack corrupt {{unpacked}} -o {{out}} --kind jpeg --severity 5 --split calibration {UNPACKED} --json",
        lambda done, made: [
            set(done.value["made"]) == {"jpeg-5"},
            all(Image.open(one).format == "JPEG" for one in (done.path / "pictures").iterdir()),
        ],
    ),
    Case(
        "attack corrupt {records} -o {out} --kind blur --severity 1 --split test --json",
        lambda done, made: {one.split for one in load_records(done.path)} == {"test"},
    ),
]
