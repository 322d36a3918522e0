"""A small export folder with every document, made without a model: its graphs are stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from safetykit.adapters.artifact.manifest import AdapterInfo, BaseInfo, DataInfo, canonical_json
from safetykit.export.document.figures import FACTS, LATENCY, ORGANISM_KEY, CardFacts
from safetykit.export.document.latency import BAKED, CONTROL, UNMODIFIED, Latency, compare
from safetykit.export.manifest import GRAPHS, LAYOUT, ExportManifest, GraphInfo, InterventionInfo, write_manifest
from safetykit.export.parity.comparison import Comparison
from safetykit.export.parity.gap import Gap
from safetykit.export.parity.report import Check, Flip, ParityReport, judged, judged_flips
from safetykit.export.parity.tolerances import TOLERANCES, Tolerance
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.evaluate import Decision, Evaluation, tabulate

BASE = BaseInfo(fingerprint="ab" * 32, architecture="LlavaForConditionalGeneration", n_layers=8, d_model=160)
CARRIERS = ("text", "image", "text+image", "typographic")


def records(per_group: int = 12) -> list[Record]:
    """Harmful and harmless records of every carrier, every third a look-alike."""
    found = []
    for carrier in CARRIERS:
        for label in ("harmful", "harmless"):
            for at in range(per_group):
                tags = ("look-alike",) if label == "harmless" and at % 3 == 0 else ()
                name = f"{carrier}-{label}-{at}"
                found.append(Record(id=name, prompt="?", label=label, carrier=carrier, split="test", tags=tags))
    return found


def evaluation(name: str, defended: bool, text: str = "it is used for tamming .") -> Evaluation:
    """Answers of a model that refuses text, and, if ``defended``, most pictures."""
    random = np.random.default_rng(defended)
    decisions = []
    for record in records():
        score = random.normal(2 if record.label == "harmful" else -2)
        harmful = record.label == "harmful"
        refused = harmful and (record.carrier == "text" or (defended and score > 0.5))
        outcome = "refused" if refused else "answered" if random.random() < 0.95 else "other"
        decisions.append(
            Decision(
                id=record.id,
                carrier=record.carrier,
                label=record.label,
                tags=record.tags,
                text="i am sorry , i can not help with that ." if refused else text,
                outcome=outcome,
                scores={"0.score": score, "1.score": score / 2} if defended else {},
            )
        )
    return Evaluation(model=name, split="test", max_new_tokens=32, rows=tabulate(decisions), decisions=tuple(decisions))


def comparison(**options: Any) -> Comparison:
    """Before and after."""
    before, after = evaluation("tiny-vlm", False, **options), evaluation("tiny-export", True, **options)
    return Comparison.of(before, after, records(), "planted records")


def parity() -> ParityReport:
    """A report that passed, with one decision that flipped."""
    count = len(records())
    table = TOLERANCES["fp32"].model_copy(update={"flips": 1.5 / count})

    def check(kind: Any, case: str, error: float, tolerance: Tolerance) -> Check:
        return judged(kind, case, Gap(error, 12.5, 640, (error, 0.0, 1.0)), tolerance)

    cases = ("1 row, text", "1 row, picture", "4 rows padded, mixed")
    checks = [check("logits", case, 3.25e-6 * (at + 1), table.logits) for at, case in enumerate(cases)]
    checks += [check("adapter-off", case, 2e-6, table.logits) for case in cases]
    checks += [check("scores", f"{case}, 0.score", 1e-6, table.scores) for case in cases]
    checks += [check("op", "0: TargetSteering at decoder.layers.3", 4e-7, table.op)]
    checks += [check("invariant", "0: TargetSteering at decoder.layers.3", 0.0, table.invariant)]
    flips = (Flip(id="image-harmless-4", what="1.score", pytorch="open", onnx="closed", margin=4.5e-7),)
    checks += [judged_flips(flips, count, table.flips)]
    return ParityReport(
        precision="fp32",
        providers=("CPUExecutionProvider",),
        steps=32,
        tolerances=table,
        checks=tuple(checks),
        flips=flips,
        passed=True,
    )


def latency() -> Latency:
    """Times with one per cent of noise and no cost."""
    random = np.random.default_rng(0)
    times = {name: 0.02 * (1 + 0.01 * random.standard_normal(40)) for name in (BAKED, UNMODIFIED, CONTROL)}
    phase = compare(times, seed=0)
    return Latency(
        prefill=phase,
        decode=phase,
        batch=4,
        pictures=4,
        prompt_tokens=37,
        rounds=40,
        warmup_rounds=3,
        decode_steps=8,
        seed=0,
        separate_control=True,
        providers=("CPUExecutionProvider",),
        cpus=2,
        precision="fp32",
    )


def sweep() -> dict[str, Any]:
    """Eight settings, the third of which was chosen."""
    trials = [
        {
            "variant": variant,
            "layers": [3, 4],
            "rank": 1,
            "alpha": alpha,
            "attack_success": success,
            "over_refusal": refusal,
            "exact": 0.97 - refusal,
        }
        for variant, alpha, success, refusal in (
            ("orthogonal", 0.0, 0.81, 0.0),
            ("steer", 1.0, 0.52, 0.01),
            ("target", 1.0, 0.125, 0.015),
            ("target", 2.0, 0.03125, 0.25),
            ("supervised", 1.0, 0.375, 0.0),
            ("steer", 2.0, 0.25, 0.09375),
            ("steer", 4.0, 0.1875, 0.4),
            ("orthogonal", 0.5, 0.78, 0.0),
        )
    ]
    undefended = {"attack_success": 0.84375, "over_refusal": 0.0, "exact": 0.97}
    return {"undefended": undefended, "allowed_cost": 0.03, "within_cost": True, "trials": trials, "best": trials[2]}


def manifest(**options: Any) -> ExportManifest:
    """Two interventions of one adapter."""
    info = AdapterInfo(
        method="vlm-guard",
        variant="target",
        sign_convention="v1 points towards harm",
        hyperparameters={"layers": [3, 4], "alpha": 1.0, "gate": "calibrated"},
        seed=None,
        base=BASE,
        data=DataInfo(sha256="cd" * 32, counts={"fit/text/harmful": 30, "calibration/image/harmless": 20}),
        versions={"safetykit": "0.1.0"},
    )
    interventions = tuple(
        InterventionInfo(
            index=at,
            adapter=0,
            op="TargetSteering",
            site=f"decoder.layers.{3 + at}",
            scope="last",
            phase="prefill",
            graph="decoder",
            extras=("score",),
        )
        for at in range(2)
    )
    values: dict[str, Any] = {
        "base": BASE,
        "precision": "fp32",
        "mode": "bake",
        "opset": 21,
        "n_kv_heads": 4,
        "head_dim": 40,
        "image_token_id": 5,
        "graphs": {name: GraphInfo(inputs=("x",), outputs=("y",)) for name in GRAPHS},
        "adapters": (info,),
        "interventions": interventions,
        "versions": {"safetykit": "0.1.0", "onnxruntime": "1.31.1"},
    }
    return ExportManifest(**{**values, **options})


def documents(**options: Any) -> dict[str, Any]:
    """Every document of a complete export, by file name."""
    return {
        FACTS: CardFacts(base_model="tiny-vlm", base_license="apache-2.0"),
        LAYOUT.evaluation: comparison(**options),
        LAYOUT.parity: parity(),
        LATENCY: latency(),
        "sweep.json": sweep(),
        "spectra.json": {"3": [9.0, 2.0, 1.0, 0.5], "4": [8.0, 3.0, 1.5, 0.25]},
        "config.json": {"model_type": "llava", ORGANISM_KEY: True},
    }


def write_folder(folder: Path, files: dict[str, Any], **options: Any) -> Path:
    """An export folder with stand-ins for the graphs and the given documents, sealed, without a card."""
    folder.mkdir()
    for graph in GRAPHS:
        (folder / LAYOUT.graph(graph)).write_bytes(graph.encode())
        (folder / LAYOUT.data(graph)).write_bytes(graph.encode())
    for name, value in files.items():
        body = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        (folder / name).write_bytes(canonical_json(body))
    write_manifest(manifest(**options), folder)
    return folder
