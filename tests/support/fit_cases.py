"""Every option of every `safetykit fit METHOD` in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from case import Case
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


def differs_from(done: Outcome, adapter: str) -> bool:
    """The fit's tensors are others than those of the adapter in a folder."""
    name = "adapter.safetensors"
    return (done.path / name).read_bytes() != (Path(adapter) / name).read_bytes()


FIT = "--data {records} -o {out} --json"
GUARD = f"fit vlm-guard {{model}} {FIT} --layers 4"
CARE = f"fit care {{model}} {FIT} --layers 3-4"
SASA = f"fit sasa {{model}} {FIT}"
PROBE = f"fit one-pass {{model}} {FIT}"
TINY_SASA = f"fit sasa {{tiny}} {FIT} --safety-layer 0 --fused-layer 1"
TINY_PROBE = f"fit one-pass {{tiny}} {FIT} --fused-layer 1"
REFUSAL = "--refusal 'sorry .'"
GUARDED = f"fit streaming-guard {{tiny}} {FIT}"
QUICKLY = "--tokens 2 --rounds 1 --allow-constant-gate"
TGA = "fit tga {model} --data {captions} -o {out} --json"
NULL = f"fit nullsteer {{model}} {FIT} --layers 4"
RETRIEVAL = "fit retrieval {model} --data {captions} --index {index} -o {out} --json"

FITS = [
    # VLM-Guard
    Case(
        f"{GUARD} --variant steer --direction svd --gate paper --rank 1 --alpha 0.5 --scope last --phase prefill",
        chosen(
            variant="steer", direction="svd", gate="paper", layers=[4], rank=1, alpha=0.5, scope="last", phase="prefill"
        ),
    ),
    Case(
        f"{GUARD} --variant target --direction mean --gate calibrated --false-positive-rate 0.1 --scope text",
        chosen(variant="target", direction="mean", gate="calibrated", false_positive_rate=0.1, scope="text"),
    ),
    Case(
        f"{GUARD} --variant supervised --gate whitened --scope vision --on {{int4_base}}",
        lambda done, made: [
            chosen(variant="supervised", gate="whitened", scope="vision")(done, made) is None,
            on_the_base(done, made),
        ],
    ),
    Case(
        f"{GUARD} --hold --phase both --scope all --allow-constant-gate",
        chosen(hold=True, phase="both", scope="all", allow_constant_gate=True),
    ),
    Case(f"{GUARD} {UNPACKED}".replace("{records}", "{unpacked}"), left_out),
    Case(
        f"{GUARD} --phase decode --device cpu --dtype bfloat16 --batch-size 8",
        lambda done, made: [
            chosen(phase="decode")(done, made) is None,
            ran("bfloat16")(done, made),
            json.loads((done.path / "fit_options.json").read_text())["batch-size"] == "8",
        ],
    ),
    Case(f"{GUARD} --device-map auto --max-memory cpu=4MiB", ran(spread=True)),
    *(
        Case(f"{GUARD} --variant orthogonal --site {site}", chosen(variant="orthogonal", site=site))
        for site in ("block", "mlp", "attn")
    ),
    Case(f"{GUARD} --text-model reference:severe", lambda done, made: differs_from(done, made["guard"])),
    Case(
        f"{GUARD} --sweep --variant steer --direction svd --gate paper --rank 1",
        lambda done, made: done.value["sweep"]["trials"] and chosen(layers=[4], rank=1)(done, made),
    ),
    Case("fit vlm-guard {model} --data {records} -o {taken} --layers 4 --overwrite --json", chosen(layers=[4])),
    # CARE
    Case(
        f"{CARE} --variant official --fusion adaptive -k 2 --alpha 0.5"
        " --floor 0.1 --contrast label --centre own --modalities both",
        chosen(
            variant="official",
            fusion="adaptive",
            layers=[3, 4],
            rank=2,
            alpha=0.5,
            floor=0.1,
            contrast="label",
            centre="own",
            modalities="both",
        ),
    ),
    Case(
        f"{CARE} --variant corrected --fusion sequential --textual-layers 5"
        " --k 3 --contrast carrier --centre benign --shrinkage oas --site mlp",
        chosen(
            variant="corrected",
            fusion="sequential",
            textual_layers=[5],
            rank=3,
            contrast="carrier",
            centre="benign",
            shrinkage="oas",
            site="mlp",
        ),
    ),
    Case(
        f"{CARE} --fusion injection --beta 0.5 --contrast carrier --shrinkage ledoit-wolf --site attn --scope text",
        chosen(fusion="injection", beta=0.5, shrinkage="ledoit-wolf", site="attn", scope="text"),
    ),
    Case(
        f"{CARE} --fusion parallel --selection kernel --visual-share 0.5"
        " --textual-share 0.4 --contrast behaviour --site block --scope vision",
        chosen(
            fusion="parallel",
            selection="kernel",
            visual_share=0.5,
            textual_share=0.4,
            contrast="behaviour",
            site="block",
            scope="vision",
        ),
    ),
    Case(
        f"{CARE} --fusion masked --selection none --with-response --phase decode --contrast carrier",
        chosen(fusion="masked", selection="none", with_response=True, phase="decode"),
    ),
    Case(
        f"{CARE} --modalities visual --scope last --phase prefill --contrast carrier --on {{int4_base}}",
        lambda done, made: [
            chosen(modalities="visual", scope="last", phase="prefill")(done, made) is None,
            on_the_base(done, made),
        ],
    ),
    Case(
        f"{CARE} --modalities textual --scope all --phase both --contrast carrier --device cpu --dtype float16",
        lambda done, made: [
            chosen(modalities="textual", scope="all", phase="both")(done, made) is None,
            ran("float16")(done, made),
        ],
    ),
    Case(
        f"{CARE} --modalities textual --contrast carrier {SPREAD} --batch-size 8",
        ran(),
    ),
    Case(
        f"{CARE} --sweep --fusion parallel --k 4 --contrast carrier",
        lambda done, made: done.value["sweep"]["trials"] and chosen(layers=[3, 4], rank=4)(done, made),
    ),
    Case(
        "fit care {model} --data {records} -o {out} --json --map {map} --map-layers 2 --contrast carrier",
        lambda done, made: len(done.value["hyperparameters"]["layers"]) == 2,
    ),
    Case(
        "fit care {model} --data {records} -o {taken} --layers 3 --contrast carrier --overwrite --json",
        chosen(layers=[3]),
    ),
    Case(f"{CARE} --contrast carrier {UNPACKED}".replace("{records}", "{unpacked}"), left_out),
    # NullSteer
    Case(
        f"{NULL} --sweep --variant low-rank --rank 2 --harmful text --towards harmful --site block --strength 0.5"
        " --decode-strength 1.5 --constraint projection --dropped 4 --ridge 0.5 --harmless last",
        lambda done, made: [
            len(done.value["sweep"]["trials"]) == 1,
            chosen(
                variant="low-rank",
                rank=2,
                harmful="text",
                towards="harmful",
                site="block",
                strength=0.5,
                decode_strength=1.5,
                constraint="projection",
                dropped=4,
                harmless="last",
                ridge=0.5,
            )(done, made)
            is None,
        ],
    ),
    Case(
        f"{NULL} --variant rank-one --harmful both --site mlp --constraint projection --variance 0.5 --harmless tokens"
        f" --towards harmful --on {{int4_base}} {SPREAD}",
        lambda done, made: [
            chosen(variant="rank-one", harmful="both", site="mlp", variance=0.5)(done, made) is None,
            on_the_base(done, made),
        ],
    ),
    Case(
        "fit nullsteer {model} --data {unpacked} -o {taken} --overwrite --json --layers 4 --site attn --towards refused"
        " --constraint penalty --penalty 2"
        f" --device cpu --dtype float32 --batch-size 32 {UNPACKED}",
        lambda done, made: [
            chosen(site="attn", towards="refused", penalty=2)(done, made) is None,
            left_out(done, made),
        ],
    ),
    # Refusal direction
    Case(
        "fit refusal-direction {model} --data {records} -o {taken} --overwrite --json --sweep --variant addition"
        " --layer 4 --strength 0.5 --device cpu --dtype float32 --batch-size 32",
        lambda done, made: [
            chosen(variant="addition", layer=4, strength=0.5)(done, made) is None,
            len(done.value["sweep"]["trials"]) == 1,
        ],
    ),
    Case(
        "fit refusal-direction {model} --data {unpacked} -o {out} --json --variant ablation --on {int4_base}"
        f" {SPREAD} {UNPACKED}",
        lambda done, made: [chosen(variant="ablation", layer=4)(done, made) is None, left_out(done, made)],
    ),
    # SASA and the one-pass probe
    Case(
        f"{TINY_SASA} {REFUSAL} --variant published --false-positive-rate 0.1 --space hidden --fraction 0.9 --seed 3",
        chosen(safety_layer=0, fused_layer=1, false_positive_rate=0.1, space="hidden", fraction=0.9, seed=3),
    ),
    Case(
        f"fit sasa {{tiny}} {FIT} --variant unprojected --space logits {REFUSAL}",
        lambda done, made: (
            done.value["variant"] == "unprojected"
            and chosen(space="logits")(done, made) is None
            and recorded(done)["detector"]["refusal"] == "sorry ."
        ),
    ),
    Case(
        f"{SASA} --safety-layer 3 --fused-layer 4 --with {{guard}}",
        lambda done, made: done.value["hyperparameters"]["corrected_by"],
    ),
    Case(
        f"{TINY_SASA} {REFUSAL} --device cpu --dtype bfloat16 --batch-size 16",
        ran("bfloat16"),
    ),
    Case(f"{TINY_SASA} {REFUSAL} {SPREAD}", ran()),
    Case(f"{TINY_SASA} {REFUSAL} {UNPACKED}".replace("{records}", "{unpacked}"), left_out),
    Case(f"{SASA} --map {{map}}", lambda done, made: done.value["hyperparameters"]["safety_layer"] is not None),
    Case(
        "fit sasa {model} --data {records} -o {taken} --safety-layer 3 --fused-layer 4 --on {int4_base} --overwrite"
        " --json",
        lambda done, made: [chosen(fused_layer=4)(done, made) is None, on_the_base(done, made)],
    ),
    Case(
        f"{TINY_PROBE} {REFUSAL} --false-positive-rate 0.1 --space hidden --fraction 0.9 --seed 3",
        chosen(fused_layer=1, false_positive_rate=0.1, space="hidden", fraction=0.9, seed=3),
    ),
    Case(
        f"{TINY_PROBE} --space logits {REFUSAL}",
        lambda done, made: (
            chosen(space="logits")(done, made) is None and recorded(done)["detector"]["refusal"] == "sorry ."
        ),
    ),
    Case(f"{TINY_PROBE} {REFUSAL} --device cpu --dtype bfloat16 --batch-size 16", ran("bfloat16")),
    Case(f"{TINY_PROBE} {REFUSAL} {SPREAD}", ran()),
    Case(f"{TINY_PROBE} {REFUSAL} {UNPACKED}".replace("{records}", "{unpacked}"), left_out),
    Case(f"{PROBE} --fused-layer 4 --with {{guard}}", lambda done, made: done.value["hyperparameters"]["corrected_by"]),
    Case(
        "fit one-pass {model} --data {records} -o {taken} --fused-layer 4 --on {int4_base} --overwrite --json",
        lambda done, made: [chosen(fused_layer=4)(done, made) is None, on_the_base(done, made)],
    ),
    Case(
        "fit hidden-detect {model} --data {unpacked} -o {taken} --overwrite --json --layer 6 --false-positive-rate 0.1"
        f" --refusal 'sorry .' --with {{guard}} --device cpu --dtype float32 --batch-size 16 {UNPACKED}",
        lambda done, made: [
            chosen(layer=6, false_positive_rate=0.1)(done, made) is None,
            recorded(done)["detector"]["refusal"] == "sorry .",
            done.value["hyperparameters"]["corrected_by"],
            left_out(done, made),
        ],
    ),
    Case(
        f"fit hidden-detect {{model}} {FIT} --on {{int4_base}} {SPREAD}",
        lambda done, made: [chosen(layer=7)(done, made) is None, on_the_base(done, made)],
    ),
    Case(
        f"fit one-pass {{tiny}} {FIT} --layers 0-1 {REFUSAL}",
        lambda done, made: [
            chosen(layers=[0, 1], fused_layer=None)(done, made) is None,
            recorded(done)["interventions"][0]["reads"] == ["decoder.layers.0"],
        ],
    ),
    # the streaming guard
    Case(
        f"{GUARDED} --action ramp --layers 0,1 --alpha 3 --rounds 1 --hardest 2 --tokens 4 --false-positive-rate 0.1"
        f" --seed 3 --allow-constant-gate {SPREAD}",
        lambda done, made: [
            chosen(
                action="ramp",
                layers=[0, 1],
                alpha=3,
                rounds=1,
                hardest=2,
                tokens=4,
                false_positive_rate=0.1,
                seed=3,
                allow_constant_gate=True,
            )(done, made)
            is None,
            ran()(done, made),
        ],
    ),
    Case(
        f"{GUARDED} --action once --device cpu --dtype bfloat16 --batch-size 16 {QUICKLY} {UNPACKED}".replace(
            "{records}", "{unpacked}"
        ),
        lambda done, made: [
            ran("bfloat16")(done, made),
            recorded(done)["interventions"][0]["gate"] == "once",
            left_out(done, made),
        ],
    ),
    Case(
        f"fit streaming-guard {{model}} {FIT} --with {{guard}} {QUICKLY}",
        lambda done, made: done.value["hyperparameters"]["corrected_by"],
    ),
    Case(
        f"fit streaming-guard {{model}} --data {{records}} -o {{taken}} --on {{int4_base}} --overwrite --json"
        f" {QUICKLY}",
        on_the_base,
    ),
    # TGA and retrieval
    Case(
        f"{TGA} --variant lora --layers 4 --guide-weight 0.2 --request-weight 0.4"
        " --opening-weight 0.5 --ce-weight 1 --shuffled 0.25 "
        "--steps 2 --batch-size 4 --accumulate 2 --lr 0.0005 --rank 2 --seed 5 --no-resume",
        chosen(
            variant="lora",
            layers=[4],
            guide_weight=0.2,
            request_weight=0.4,
            opening_weight=0.5,
            ce_weight=1,
            shuffled=0.25,
            steps=2,
            batch_size=4,
            accumulate=2,
            lr=0.0005,
            rank=2,
            seed=5,
        ),
    ),
    Case(
        f"{TGA} --variant projector --budget 3.6 --batch-size 4 --no-centred --no-retrieval --resume",
        chosen(variant="projector", centred=False, retrieval=False, budget=3.6, steps=1),
    ),
    Case(
        f"{TGA} --variant low-rank --steps 1 --batch-size 4 --centred --retrieval --prefixed 0.5 --index {{index}}",
        chosen(variant="low-rank", centred=True, retrieval=True, prefixed=0.5),
    ),
    Case(
        f"{TGA} --variant closed-form --ridge 0.5 --device cpu --dtype float32",
        lambda done, made: [chosen(variant="closed-form", ridge=0.5)(done, made) is None, ran()(done, made)],
    ),
    Case(f"{TGA} --variant closed-form {SPREAD}", ran()),
    Case(f"{TGA} --map {{map}} --steps 1 --batch-size 4", lambda done, made: done.value["hyperparameters"]["layers"]),
    Case(
        "fit tga {model} --data {captions} -o {taken} --variant closed-form --overwrite --json",
        chosen(variant="closed-form"),
    ),
    Case(f"{RETRIEVAL} -k 2 --correction 0.5 --in-graph-limit 1000", chosen(k=2, correction=0.5, in_graph_limit=1000)),
    Case(
        f"{RETRIEVAL} --k 2 --prefix --external-index",
        lambda done, made: done.value["variant"] == "external" and chosen(k=2, prefix=True)(done, made) is None,
    ),
    Case(f"{RETRIEVAL} --device cpu --dtype bfloat16 --batch-size 8", ran("bfloat16")),
    Case(f"{RETRIEVAL} {SPREAD}", ran()),
    Case(f"{RETRIEVAL} --with {{guard}}", lambda done, made: done.value["hyperparameters"]["corrected_by"]),
    Case(
        "fit retrieval {model} --data {captions} --index {encoded_index}"
        " --encoder {encoder} -o {taken} --overwrite --json",
        lambda done, made: done.value["method"],
    ),
]
