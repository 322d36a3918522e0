"""Every option of the fits of detectors in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

from case import Case
from fit_checks import FIT, REFUSAL, SPREAD, UNPACKED, chosen, left_out, on_the_base, ran, recorded

SASA = f"fit sasa {{model}} {FIT}"
PROBE = f"fit one-pass {{model}} {FIT}"
TINY_SASA = f"fit sasa {{tiny}} {FIT} --safety-layer 0 --fused-layer 1"
TINY_PROBE = f"fit one-pass {{tiny}} {FIT} --fused-layer 1"
GUARDED = f"fit streaming-guard {{tiny}} {FIT}"
QUICKLY = "--tokens 2 --rounds 1 --allow-constant-gate"

DETECTORS = [
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
]
