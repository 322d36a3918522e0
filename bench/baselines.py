"""Baselines beside each other on the reference VLM: defences that only ask, directions, a detector, LEACE and CAST.

    python bench/baselines.py -o OUT [--checkpoint mild]

Everything that is chosen is chosen on the calibration split, by each method's own sweep where it has one; the random
direction gets the layer and the strength that the refusal direction was given. The test split, all of it, is answered
once, in PyTorch, by the model with the adapter on it or behind the defence. Rates have Wilson intervals of 95 %.
``calls`` is how often the model was asked for an answer. Writes OUT/baselines.json and OUT/baselines.md; what is
measured is kept there and not measured again.

The reference VLM is a model organism with a closed language: to it, most words of a defence's prompts are one unknown
word. Rows of such defences say what they do to *it*, and nothing about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetykit.bench import skeleton
from safetykit.bench.effects import Arm, fitted, parse_arm
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.defences.registry import DEFENCES, defended
from safetykit.toolkit.evaluation.evaluate import evaluate
from safetykit.toolkit.model.vlm import VLM

UNDEFENDED = "undefended"
ADDED = "refusal direction, added"
ARMS = (
    f"{ADDED}: refusal-direction sweep",
    "refusal direction, ablated (control): refusal-direction variant=ablation",
    "random direction, added (control): refusal-direction variant=random",
    "HiddenDetect: hidden-detect",
    "LEACE, modality: leace sweep",
    "LEACE, modality, orthogonal: leace variant=orthogonal sweep",
    "LEACE, harm (control): leace concept=harm",
    "CAST: cast sweep",
)
ATTACKS = ("text", "image", "text+image", "typographic", "image/rendering-unseen")
_TOLD = ("layer", "layers", "strength", "alpha", "beta", "phase", "scope", "condition", "condition_layer")
_LIMITS = {"max_new_tokens": 24, "batch_size": 64}


def measure(vlm: VLM, test: Sequence[Record], work: Path, *, arm: Arm | None = None, defence: str = "") -> Any:
    """Fit an arm, or put a defence before the model, and count the answers to ``test``."""
    adapters = fitted(arm, vlm, work) if arm else []
    with ExitStack() as stack:
        if adapters:
            stack.enter_context(vlm.applied(*adapters))
        found = evaluate(defended(vlm, defence) if defence else vlm, test, **_LIMITS)
    return {
        "settings": [one.info.hyperparameters for one in adapters],
        "sweeps": [one.attachments.get("sweep") for one in adapters],
        "rows": skeleton.rows_by_group(found.rows),
        "calls": found.calls,
    }


def like_added(arm: Arm, found: Mapping[str, Any]) -> Arm:
    """The arm of the random direction with the layer and strength of the refusal direction; others as they are."""
    (part,) = arm.parts
    if part.settings.get("variant") != "random":
        return arm
    (added,) = found[ADDED]["settings"]
    return parse_arm(
        f"{arm.title}: refusal-direction variant=random layer={added['layer']} strength={added['strength']}"
    )


def table(results: Mapping[str, Any]) -> str:
    """Markdown: per checkpoint, a row an arm, and what was chosen for each."""
    heads = [*(f"attack, {group}" for group in ATTACKS), "harmful refused", "over-refusal", "exact answers", "calls"]
    parts = []
    for checkpoint, found in results.items():
        lines = [f"**`{checkpoint}`**", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        chosen = []
        for title in (UNDEFENDED, *DEFENCES, *(parse_arm(text).title for text in ARMS)):
            if (arm := found["arms"].get(title)) is None:
                continue
            rows = {group: row["metrics"] for group, row in arm["rows"].items()}
            cells = [rows.get(group, {}).get("attack_success") for group in ATTACKS]
            cells += [rows["all"].get(metric) for metric in ("refused", "over_refusal", "exact")]
            lines.append(f"| {title} | " + " | ".join(map(skeleton.percent, cells)) + f" | {arm['calls']:.2f} |")
            swept = zip(arm["settings"], arm["sweeps"], strict=True)
            chosen += [f"{title}: {told(settings)}" for settings, sweep in swept if sweep]
        parts.append(
            "\n".join(
                [*lines, "", "Chosen on calibration records: " + "; ".join(chosen) + "." if chosen else ""]
            ).rstrip()
        )
    return "\n\n".join(parts) + "\n"


def told(settings: Mapping[str, Any]) -> str:
    """What of an arm's settings a reader asks for."""
    named = {name: settings[name] for name in _TOLD if settings.get(name) is not None}
    return ", ".join(f"{name.replace('_', ' ')} {_said(value)}" for name, value in named.items())


def _said(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    options = parser.parse_args(given)
    skeleton.one_thread()
    path = options.out / "baselines.json"
    results: dict[str, Any] = skeleton.read_results(path)
    test = load_records(data_path("reference"), ["test"])
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        found = results.get(checkpoint, {})
        if found.get("fingerprint") != vlm.fingerprint:
            found = results[checkpoint] = {"fingerprint": vlm.fingerprint, "arms": {}}
        arms = found["arms"]
        for title in (UNDEFENDED, *DEFENCES, *(parse_arm(text).title for text in ARMS)):
            if title in arms:
                continue
            skeleton.say(f"{checkpoint}: {title}")
            arm = next((one for one in map(parse_arm, ARMS) if one.title == title), None)
            arms[title] = measure(
                vlm,
                test,
                options.out / f"{checkpoint}-work",
                arm=arm and like_added(arm, arms),
                defence=title if title in DEFENCES else "",
            )
            skeleton.write_results(path, results)
    skeleton.write_table(options.out / "baselines.md", table(results))


if __name__ == "__main__":
    skeleton.run(main)
