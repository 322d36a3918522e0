"""Every option of the fits of correctors in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

import json

from case import Case
from fit_checks import (
    FIT,
    SPREAD,
    UNPACKED,
    chosen,
    differs_from,
    left_out,
    on_the_base,
    opened_by_the_probe,
    ran,
    recorded,
)

GUARD = f"fit vlm-guard {{model}} {FIT} --layers 4"
CARE = f"fit care {{model}} {FIT} --layers 3-4"
NULL = f"fit nullsteer {{model}} {FIT} --layers 4"

CORRECTORS = [
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
    Case(
        f"fit vlm-guard {{model}} {FIT} --layers 6 --phase both --gate-by {{probe}}",
        lambda done, made: [opened_by_the_probe(done), "gate" not in done.value["hyperparameters"]],
    ),
    # CARE
    Case(
        f"{CARE.replace('3-4', '5-6')} --site block --fusion sequential --contrast carrier --gate-by {{probe}}",
        lambda done, made: opened_by_the_probe(done),
    ),
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
    Case(
        f"fit nullsteer {{model}} {FIT} --sweep --layers 4 --harmful text --towards harmful --strength 1"
        " --decode-strength 2 --penalty 1 --gate-by {probe}",
        lambda done, made: [opened_by_the_probe(done), len(done.value["sweep"]["trials"]) == 1],
    ),
    # LEACE
    Case(
        "fit leace {model} --data {records} -o {taken} --overwrite --json --sweep --variant least-squares"
        " --concept modality --layers 4 --site block --beta 0.5 --scope text --phase prefill"
        " --device cpu --dtype float32 --batch-size 32",
        lambda done, made: [
            chosen(layers=[4], concept="modality", beta=0.5, scope="text", phase="prefill", site="block")(done, made)
            is None,
            len(done.value["sweep"]["trials"]) == 1,
        ],
    ),
    Case(
        "fit leace {model} --data {unpacked} -o {out} --json --variant orthogonal --concept harm --site mlp --scope all"
        f" --phase both --on {{int4_base}} {SPREAD} {UNPACKED}",
        lambda done, made: [
            chosen(variant="orthogonal", concept="harm", site="mlp", phase="both")(done, made) is None,
            left_out(done, made),
        ],
    ),
    Case(f"fit leace {{tiny}} {FIT} --site attn --scope last --phase decode", chosen(site="attn", scope="last")),
    Case(f"fit leace {{tiny}} {FIT} --scope vision --layers 0", chosen(scope="vision", layers=[0])),
    # CAST
    Case(
        "fit cast {model} --data {records} -o {taken} --overwrite --json --sweep --condition mean --condition-layer 4"
        " --layers 4 --alpha 0.5 --allow-constant-gate --device cpu --dtype float32 --batch-size 32",
        lambda done, made: [
            chosen(condition="mean", condition_layer=4, layers=[4], alpha=0.5, allow_constant_gate=True)(done, made)
            is None,
            len(done.value["sweep"]["trials"]) == 1,
        ],
    ),
    Case(
        "fit cast {model} --data {unpacked} -o {out} --json --condition pca --allow-constant-gate --on {int4_base}"
        f" {SPREAD} {UNPACKED}",
        lambda done, made: [chosen(condition="pca", layers=[4])(done, made) is None, left_out(done, made)],
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
    Case(
        f"fit refusal-direction {{model}} {FIT} --layer 5 --gate-by {{probe}}",
        lambda done, made: opened_by_the_probe(done),
    ),
    Case(
        f"fit refusal-direction {{tiny}} {FIT} --variant random --seed 3 --strength 0.5",
        lambda done, made: [
            chosen(variant="random", seed=3, strength=0.5)(done, made) is None,
            recorded(done)["info"]["seed"] == 3,
        ],
    ),
]
