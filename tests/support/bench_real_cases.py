"""The steps that make and measure the VLM of real parts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
from bench_case import BENCH, NO_MODEL, PARTS, BenchCase
from PIL import Image

SAVED = SimpleNamespace(save_pretrained=lambda folder: None, parameters=tuple, named_parameters=tuple)


WHITE = Image.new("RGB", (8, 8), "white")


NO_RATE = SimpleNamespace(rate=0.0, low=0.0, high=0.0, n=1, model_dump=dict)


REAL = [
    BenchCase(
        "real.fetch",
        "{folder} --no-stamps",
        lambda ran: len(ran.calls["fetch_wheel"]) > 1 and "fetch_npm" in ran.calls and "fetch_debian" not in ran.calls,
        {"fetch_wheel": None, "fetch_npm": None, "fetch_debian": None},
    ),
    BenchCase(
        "real.align",
        "{folder} --before",
        lambda ran: len(ran.calls["measured"]) == 2 and ran.value == {"refused": 1},
        {
            "all_prompts": [],
            "write_split": None,
            "write_heldout": [],
            "second_round": [],
            "third_round": [],
            "load_language": (SimpleNamespace(), SimpleNamespace(pad_token_id=0)),
            "own_answers": {},
            "willing_answers": {},
            "get_peft_model": SAVED,
            "train": None,
            "turns_of": [],
            "merge_language": None,
            "measured": {"refused": 1},
        },
    ),
    BenchCase(
        "real.assemble",
        "{folder} --with-parts {parts}",
        lambda ran: [
            ran.value["model"].endswith("folder/model"),
            ran.only("assemble")[1:3]
            == [
                json.loads((ran.only("assemble")[3] / "parts.json").read_text())[name]
                for name in ("image_size", "layer")
            ],
        ],
        {"prove_mapping": {"relative": 0.0}, "assemble": (SAVED, SAVED)},
    ),
    BenchCase(
        "real.publish",
        "{folder} -o {parts}",
        lambda ran: (
            ran.value["same"]
            and ran.only("assemble.main")[0][1:] == ["--with-parts", ran.only("collect")[1].as_posix()]
        ),
        {"collect": None, "assemble.main": None, "fingerprint": "f"},
    ),
    BenchCase(
        "real.publish",
        "{folder} -o {parts} --check",
        lambda ran: ran.value["same"] and "collect" not in ran.calls,
        {"collect": None, "fingerprint": lambda model: json.loads((PARTS / "parts.json").read_text())["fingerprint"]},
    ),
    BenchCase(
        "real.probe",
        "{folder} --things 1",
        lambda ran: [len(call[1]) for call in ran.calls["shown"]] == [1, 1],
        {
            "EmojiSets": SimpleNamespace(svg=lambda thing, name: True),
            "things": ["a", "b", "c"],
            "shown": ([], []),
            "load_tower": None,
            "pooled": dict.fromkeys(range(20)),
            "named": np.ones(1),
        },
    ),
    BenchCase(
        "real.tune",
        "{folder} --steps 3 --minutes 2 --lora-rate 4e-4 --threads 1 --bfloat16",
        lambda ran: [
            (ran.only("tune")[0].steps, ran.only("tune")[0].minutes, ran.only("tune")[0].lora_rate) == (3, 2, 4e-4),
            ran.only("tune")[0].bfloat16 and ran.only("torch.set_num_threads") == [1],
        ],
        {"tune": None, "torch.set_num_threads": None},
    ),
    BenchCase(
        "real.score",
        "{folder} --limit 3 --captions 2",
        lambda ran: [
            [call[3] for call in ran.calls["twins"]] == [3, 3] and ran.only("text_groups")[1] == 3,
            [len(call[1]) for call in ran.calls["said"]] == [2, 1, 0],
        ],
        {
            **NO_MODEL,
            "EmojiSets": SimpleNamespace(picture=lambda thing, name: WHITE),
            "twins": {},
            "objects": [],
            "things": [SimpleNamespace(name="apple", held_out=False)] * 5,
            "said": lambda vlm, requests, tokens: ["an apple"] * len(requests),
            "Rate.of": NO_RATE,
            "text_groups": {},
        },
    ),
    BenchCase(
        "real.redteam",
        "{folder} --out {out} --prompts {records}",
        lambda ran: (
            ran.value == {"n": 1} and [path.name for path in ran.only("write")] == ["folder", "out", "records.jsonl"]
        ),
        {"write": {"n": 1}},
    ),
    BenchCase(
        "real.judge",
        "{folder} --out {out}",
        lambda ran: json.loads(ran.path.read_text()) == ran.value == {"agreement": 1},
        {"validate": {"agreement": 1}},
    ),
    BenchCase("real.gates", "{folder} --out {out}", lambda ran: json.loads(ran.path.read_text())["arms"] == {}),
    BenchCase(
        "real.measure",
        "{folder} --out {out} --arms sasa --precision int4 --recalibrate --model {folder} --data {records} --limit 2"
        " --no-judge --no-latency",
        lambda ran: [
            ran.only("measure_precision")[1:] == ["sasa", "int4"],
            ran.read("sasa-int4-recalibrated.json")["identity"] == ["i"],
            (ran.only("Bench")[0].model.name, ran.only("Bench")[0].data.name) == ("folder", "records.jsonl"),
            ran.only("Bench")[0].limit == 2 and ran.only("Bench")[0].no_judge and ran.only("Bench")[0].no_latency,
        ],
        {"Bench": SimpleNamespace(identity=["i"]), "measure_precision": {}},
    ),
    BenchCase(
        "real.card",
        "--results {results} --out {out} --page {page}",
        lambda ran: [
            ran.path.read_text() == (BENCH.parent / "model_cards/real-smollm2-135m-vit-s.md").read_text(),
            ran.path.with_name("page.md").read_text() == (BENCH.parent / "docs/results.md").read_text(),
        ],
    ),
    BenchCase("real.card", "--check", lambda ran: ran.out == ""),
]
