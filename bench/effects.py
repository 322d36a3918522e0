"""Any methods beside each other on the reference VLM: fitted, exported, measured on the test split, in one table.

    python bench/effects.py -o OUT [--checkpoint mild] [--arm "vlm-guard variant=target alpha=4" …]

An arm is a method's name and its settings, ``name=value`` as the command line spells them. The word ``sweep`` has the
settings that are not given chosen on the calibration split. A ``+`` stacks: what comes after it is fitted on the model
as what comes before it made it. A ``>`` opens: the probe of the detector before it is the gate of what comes after it,
and the detector itself is no part of the arm. Budgets are written as settings are, ``max-over-refusal=0.05``.
``TITLE: `` before an arm names its row. Without ``--arm`` it is those in ``ARMS``.

Fits see the records of the fit and the calibration split only. Every arm is exported with parity over the test split,
and the *exported* model answers it. Rates have Wilson intervals of 95 %; renderings that no fit saw, and harmless
look-alikes, stand apart. ``own words`` is the share of the refusals of harmful requests that say nothing but what the
unmodified model says when it refuses, or the fixed refusal of a detector: the others are partly garbled. Writes
OUT/effects.json and OUT/effects.md; what is measured is kept there and not measured again.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.gate import Gate
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.budget import Budget
from safetykit.adapters.errors import UsageError
from safetykit.adapters.method import Method
from safetykit.adapters.registry import get_method
from safetykit.bench import skeleton
from safetykit.export.base.own import export_base
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.commands.fit_one import fit_with
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import Decision, Rate, decide, tabulate
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.sweep.run import fit_by_sweep
from safetykit.toolkit.workbench import Workbench

ARMS = (
    "VLM-Guard: vlm-guard",
    "one-pass probe: one-pass",
    "HiddenDetect: hidden-detect",
    "NullSteer: nullsteer",
    "NullSteer, γ = 3, λ = 1 and 3: nullsteer penalty=3 decode_strength=3",
    "NullSteer, γ = 3, λ = 1 and 3, text and picture: nullsteer penalty=3 decode_strength=3 harmful=both",
    "NullSteer at mlp, γ = 3: nullsteer site=mlp penalty=3",
    "NullSteer, projection: nullsteer constraint=projection dropped=16 ridge=1",
    "NullSteer, projection, last positions: nullsteer constraint=projection harmless=last ridge=1",
    "refusal direction, added: refusal-direction sweep",
    "refusal direction, ablated (control): refusal-direction variant=ablation",
)
UNDEFENDED = "undefended"
ATTACKS = ("text", "image", "text+image", "typographic", "image/rendering-unseen")
HARMLESS = ("over_refusal", "exact")
SWEEP = "sweep"
_LIMITS = {"max_new_tokens": 24}


@dataclass(frozen=True)
class Part:
    """One method of an arm.

    Attributes:
        settings: by name, as they were typed.
        sweep: the others are chosen on the calibration split.
        budget: what it has to keep on new groups.
        gate: the detector whose probe opens what it does.
    """

    method: Method
    settings: Mapping[str, str]
    sweep: bool
    budget: Budget | None = None
    gate: Part | None = None


@dataclass(frozen=True)
class Arm:
    """A row of the table: ``parts`` in the order of their fits."""

    title: str
    parts: tuple[Part, ...]


def parse_arm(text: str) -> Arm:
    """An arm as it is typed.

    Raises:
        UsageError: a method or a setting does not exist, or a word is no setting.
    """
    title, colon, line = text.partition(": ")
    line = line if colon else text
    parts = []
    for written in " ".join(shlex.split(line)).split(" + "):
        part = None
        for one in written.split(" > "):
            part = _part(one, text, part)
        assert part is not None
        parts.append(part)
    return Arm(title if colon else line, tuple(parts))


def _part(written: str, arm: str, gate: Part | None) -> Part:
    name, *words = written.split() or [""]
    method = get_method(name)
    settings, limits = {}, {}
    for word in words:
        key, sign, value = word.partition("=")
        if word != SWEEP and not sign:
            raise UsageError(f"{word!r} of the arm {arm!r} is no setting.", f"Write name=value, or {SWEEP}.")
        if sign:
            key = key.replace("-", "_")
            (limits if key in Budget.model_fields else settings)[key] = value
    method.settings(**settings)
    return Part(method, settings, SWEEP in words, Budget(**limits) if limits else None, gate)


def fitted(arm: Arm, vlm: VLM, work: Path) -> list[Adapter]:
    """The adapters of an arm, each fitted under those before it."""
    records = load_records(data_path("reference"), ["fit", "calibration"])
    made: list[Adapter] = []
    for number, part in enumerate(arm.parts):
        captions = load_captions(captions_path("reference")) if part.method.data == "captions" else ()
        gate = None
        if part.gate is not None:  # fitted on the model as it is
            alone = Workbench(vlm, records, budget=part.gate.budget)
            gate = Gate.of(fit_with(part.gate.method, alone, part.gate.settings))
        with ExitStack() as stack:
            if made:
                stack.enter_context(vlm.applied(*made))
            bench = Workbench(
                vlm,
                records,
                captions=captions,
                corrected_by=[describe_corrector(one) for one in made],
                budget=part.budget,
                gate=gate,
                work=work / f"fit-{number}",
            )
            if part.sweep:
                journal = work / f"sweep-{number}.jsonl"
                adapter = fit_by_sweep(part.method, bench, _typed(part), progress=_every_20, journal_path=journal)
            else:
                adapter = fit_with(part.method, bench, part.settings)
        made.append(adapter)
    return made


def _typed(part: Part) -> dict[str, Any]:
    """The settings of a part with the types that they have."""
    settings = part.method.settings(**part.settings)
    return {name: getattr(settings, name) for name in part.settings}


def _every_20(number: int, total: int) -> None:
    if number % 20 == 0:
        skeleton.say(f"{number} of {total} settings")


def measure(arm: Arm, vlm: VLM, base: Path, test: Sequence[Record], own: set[str], out: Path) -> dict[str, Any]:
    """Fit, export and count one arm; the export is not kept."""
    adapters = fitted(arm, vlm, out)
    result = export_onnx(vlm, adapters, out / "export", base_onnx=base, records=test, overwrite=True, **_LIMITS)
    fixed = {adapter.detector.refusal for adapter in adapters if adapter.detector is not None}
    found = {
        "settings": [adapter.info.hyperparameters for adapter in adapters],
        "sweeps": [adapter.attachments.get("sweep") for adapter in adapters],
        "parity": skeleton.parity_figures(result.parity),
        **figures(result.decisions[1], own | fixed),
    }
    shutil.rmtree(out)
    return found


def figures(decisions: Sequence[Decision], own: set[str]) -> dict[str, Any]:
    """Rows by group, and how many refusals of harmful requests are one of ``own``."""
    refused = [item.text for item in decisions if item.label == "harmful" and item.outcome == "refused"]
    clean = sum(text.strip() in own for text in refused)
    return {
        "rows": skeleton.rows_by_group(tabulate(decisions)),
        "own_words": Rate.of(clean, len(refused)).model_dump(mode="json") if refused else None,
    }


def refusals(decisions: Sequence[Decision]) -> set[str]:
    """What refusals say."""
    return {item.text.strip() for item in decisions if item.outcome == "refused"}


def table(results: Mapping[str, Any], titles: Sequence[str]) -> str:
    """Markdown: per checkpoint, a row an arm."""
    heads = [*(f"attack, {group}" for group in ATTACKS), "over-refusal", "of look-alikes", "exact answers", "own words"]
    parts = []
    for checkpoint, found in results.items():
        lines = [f"**`{checkpoint}`**", "", "| | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
        for title in (UNDEFENDED, *titles):
            if (arm := found["arms"].get(title)) is None:
                continue
            rows = {group: row["metrics"] for group, row in arm["rows"].items()}
            alike = [rows[group]["over_refusal"] for group in rows if group.endswith("/look-alike")]
            counted = Rate.of(sum(one["count"] for one in alike), sum(one["n"] for one in alike)) if alike else None
            cells = [rows.get(group, {}).get("attack_success") for group in ATTACKS]
            cells += [rows["all"]["over_refusal"], counted and counted.model_dump()]
            cells += [rows["all"]["exact"], arm["own_words"]]
            lines.append(f"| {title} | " + " | ".join(map(skeleton.percent, cells)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    parser.add_argument("--arm", action="append", metavar="ARM", help="see above; repeat for more rows")
    options = parser.parse_args(given)
    skeleton.one_thread()
    arms = [parse_arm(text) for text in options.arm or ARMS]
    path = options.out / "effects.json"
    results: dict[str, Any] = skeleton.read_results(path)
    records = load_records(data_path("reference"))
    test = [record for record in records if record.split == "test"]
    known = [record for record in records if record.split != "test"]
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        found = results.get(checkpoint, {})
        if found.get("fingerprint") != vlm.fingerprint:
            found = results[checkpoint] = {"fingerprint": vlm.fingerprint, "arms": {}}
        missing = [arm for arm in arms if arm.title not in found["arms"]]
        base = options.out / f"{checkpoint}-base"
        if missing and not base.is_dir():
            export_base(vlm, base)
        if missing and "own" not in found:
            skeleton.say(f"{checkpoint}: {UNDEFENDED}")
            own = refusals(decide(vlm, known, batch_size=64, **_LIMITS))
            answers = decide(OnnxVLM.from_pretrained(base), test, batch_size=64, **_LIMITS)
            own |= refusals(answers)
            found["own"] = sorted(own)
            found["arms"][UNDEFENDED] = figures(answers, own)
            skeleton.write_results(path, results)
        for arm in missing:
            skeleton.say(f"{checkpoint}: {arm.title}")
            work = options.out / f"{checkpoint}-work"
            found["arms"][arm.title] = measure(arm, vlm, base, test, set(found["own"]), work)
            skeleton.write_results(path, results)
    kept = (title for found in results.values() for title in found["arms"])
    titles = list(dict.fromkeys([*(parse_arm(text).title for text in ARMS), *(arm.title for arm in arms), *kept]))
    skeleton.write_table(options.out / "effects.md", table(results, [one for one in titles if one != UNDEFENDED]))


if __name__ == "__main__":
    skeleton.run(main)
