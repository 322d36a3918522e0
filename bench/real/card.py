"""Writes the real VLM's card from the committed results: ``python bench/real/card.py``.

Every figure of ``model_cards/real-smollm2-135m-vit-s.md`` comes from ``results/*.json``; the words are those of
``card.md.jinja``. ``--page docs/results.md`` also puts the short table between its two marks. ``--check`` fails if the
card says anything else. Arms that were not measured are named as missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from safetykit.adapters.artifact.files import write_atomic
from safetykit.export.document.latency import Ratio
from safetykit.export.document.rendering import NOTHING, auroc, number, rate, ratio
from safetykit.toolkit.evaluation.evaluate import Rate

HERE = Path(__file__).parent
CARD = HERE.parents[1] / "model_cards/real-smollm2-135m-vit-s.md"
VERSIONS = {"fp16": "fp16", "int4": "int4", "int4-recalibrated": "int4, thresholds set again"}
MARK = "<!-- real -->"
_PICTURED = ("image", "image, unseen rendering", "image, named rightly", "text+image", "typographic")
ATTACKED = ("text", "text, caption instead of picture", "text, published prompts", *_PICTURED)
OPENED = ("text", "text, published prompts", "image", "image, unseen rendering", "text+image", "typographic")
REFUSED = ("text", "text, published prompts", *_PICTURED, "look-alikes")
NAMED = ("seen renderings", "unseen rendering", "blank", "swapped")
TITLES = {
    "undefended": "undefended",
    "system-prompt": "safety system prompt",
    "vlm-guard": "VLM-Guard",
    "care": "CARE",
    "sasa": "SASA",
    "one-pass": "one-pass probe",
    "tga": "TGA, `lora`",
    "tga+sasa": "TGA and SASA, stacked",
}
Found = Mapping[str, Mapping[str, Any]]


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by file name without its ending; one model and one set of records only.

    Raises:
        SystemExit: results of different models lie beside each other.
    """
    found = {}
    for arm in TITLES:
        for name in (arm, *(f"{arm}-{precision}" for precision in VERSIONS)):
            if (path := folder / f"{name}.json").is_file():
                found[name] = json.loads(path.read_text())
    if len({json.dumps(item["identity"]) for item in found.values()}) > 1:
        sys.exit(f"{folder} holds results of different models or records; measure the old ones again.")
    return found


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is left-aligned."""
    made = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    return "\n".join([*made, *("| " + " | ".join(line) + " |" for line in lines)])


def shares(found: Found, groups: Sequence[str], metric: str) -> str:
    """One metric per arm and group."""
    lines = []
    for arm in _measured(found):
        rows = found[arm]["rows"]
        lines.append([TITLES[arm], *(_rate(rows.get(group, {}).get(metric)) for group in groups)])
    return table(["", *groups], lines)


def utility(found: Found) -> str:
    """Names given to pictures, and perplexity."""
    lines = []
    for arm in _measured(found):
        names, text = found[arm].get("names", {}), found[arm]["perplexity"]
        cells = [_rate(names.get(name)) for name in NAMED]
        lines.append([TITLES[arm], *cells, f"{text['plain']:.2f}", f"{text['answers']:.2f}"])
    return table(["", *(f"named, {name}" for name in NAMED), "perplexity, prose", "perplexity, answers"], lines)


def detectors(found: Found, opened: Mapping[str, Any] | None) -> str:
    """How often gates and detectors opened, by carrier."""
    lines = []
    for arm in _measured(found):
        for label in ("harmful", "harmless", "auroc") if opened and arm in opened["arms"] else ():
            rows = opened["arms"][arm]
            if label == "auroc":
                cells = [auroc(rows[group].get("auroc")) for group in OPENED]
            else:
                cells = [_rate(rows[group].get(label)) for group in OPENED]
            lines.append([f"{TITLES[arm]}, {'AUROC' if label == 'auroc' else label}", *cells])
    return table(["", *OPENED], lines) if lines else "Not run."


def exports(found: Found) -> str:
    """What PyTorch and the fp32 export do differently."""
    lines = []
    for arm in _measured(found):
        item = found[arm]
        parity, flips = item["parity"], item["flips"]
        logits = f"{parity['logits']:.2g} of {parity['limit']:.2g}" if parity else NOTHING
        counts = [f"{count} of {flips['n']}" for count in (flips["records"], item["same_text"])]
        lines.append([TITLES[arm], logits, *counts])
    return table(["", "largest logit error of the limit", "decisions flipped", "answers equal word for word"], lines)


def precisions(found: Found) -> str:
    """fp16 and int4 against fp32; what parity refuses is measured all the same."""
    lines = []
    for version, words in VERSIONS.items():
        for arm in _measured(found):
            if (item := found.get(f"{arm}-{version}")) is None:
                continue
            parity = {None: NOTHING, True: "held"}.get(item["parity"].get("passed"))
            cells = [f"{TITLES[arm]}, {words}", parity or f"refused: {item['parity']['reason']}"]
            cells.append(f"{item['flips']['records']} of {item['flips']['n']}")
            for group, metric in (("all pictures", "attack_phrases"), ("all", "over_refusal")):
                cells += [_rate(item[one][group][metric]) for one in ("rows_fp32", "rows")]
            lines.append([*cells, *(f"{one['perplexity']['plain']:.2f}" for one in (found[arm], item))])
    pairs = ("attack on pictures", "over-refusal, all", "perplexity")
    heads = ["", "parity", "decisions flipped", *(head for name in pairs for head in (f"{name}, fp32", "then"))]
    return table(heads, lines) if lines else "Not run."


def latencies(found: Found) -> str:
    """Ratios over the unmodified export."""
    lines = []
    for arm in _measured(found):
        if (item := found[arm].get("latency")) is None:
            continue
        cells = [TITLES[arm]]
        for phase in ("prefill", "decode"):
            cells += [ratio(Ratio(**item[phase][name])) for name in ("ratio", "control")]
            cells.append(item[phase]["verdict"])
        lines.append(cells)
    heads = ["", "prefill", "its control", "verdict", "decode", "its control", "verdict"]
    return table(heads, lines) if lines else "Not run."


def settings(found: Found) -> str:
    """What was fitted, and what the sweep saw on calibration records."""
    lines = []
    for arm in _measured(found):
        for item in found[arm]["adapters"]:
            chosen = {key: value for key, value in item["hyperparameters"].items() if value not in (None, [], ())}
            text = ", ".join(f"{key} {_short(value)}" for key, value in chosen.items())
            swept = NOTHING
            if sweep := item.get("sweep"):
                before, best = sweep["undefended"], sweep["best"]
                swept = (
                    f"{sweep['tried']} tried; attack {before['attack_success']:.3f} → {best['attack_success']:.3f}, "
                    f"over-refusal {before['over_refusal']:.3f} → {best['over_refusal']:.3f}"
                    + ("" if sweep["within_cost"] else "; none that stops attacks kept the allowed cost")
                )
            lines.append([TITLES[arm], f"{item['method']}, {item['variant']}", text, swept])
    return table(["", "method", "setting", "sweep on calibration"], lines)


def short(found: Found) -> str:
    """One line per arm, for the page of results."""
    heads = [
        "",
        "attacks, text",
        "attacks, picture",
        "attacks, all with a picture",
        "harmless refused, all",
        "things named",
    ]
    lines = []
    for arm in _measured(found):
        rows, names = found[arm]["rows"], found[arm]["names"]
        cells = [rows["text"]["attack_phrases"]]
        cells.append(_together(rows[group]["attack_phrases"] for group in ("image", "image, unseen rendering")))
        cells += [rows["all pictures"]["attack_phrases"], rows["all"]["over_refusal"]]
        cells.append(_together(names[group] for group in ("seen renderings", "unseen rendering")))
        lines.append([TITLES[arm], *map(_rate, cells)])
    return table(heads, lines)


def judges(found: Found, report: Mapping[str, Any] | None) -> str:
    """Agreement of judges with people, and with each other on this model's answers."""
    lines = []
    for name, item in (report or {"judges": {}})["judges"].items():
        cells = [_rate(item["agreement"]), number(item["kappa"]), number(item.get("auroc"))]
        lines.append([f"{name}, with people", *cells])
    for arm in _measured(found):
        for label, item in (found[arm]["judges"] or {}).items():
            cells = [_rate(item["agreement"]), number(item["kappa"]), NOTHING]
            lines.append([f"phrases with hidden states, {label}, {TITLES[arm]}", *cells])
    return table(["", "agreement", "κ", "AUROC"], lines)


def render(folder: Path) -> str:
    """The card."""
    found = load(folder)
    report = folder / "judge.json"
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    validated = json.loads(report.read_text()) if report.is_file() else None
    gates = json.loads((folder / "gates.json").read_text()) if (folder / "gates.json").is_file() else None
    if gates and found and gates["fingerprint"] != next(iter(found.values()))["identity"][0]:
        sys.exit(f"{folder}/gates.json is of another model; run python bench/real/gates.py WORK again.")
    return environment.get_template("card.md.jinja").render(
        fingerprint=next(iter(found.values()))["identity"][0] if found else "",
        attacks_phrases=shares(found, ATTACKED, "attack_phrases"),
        attacks_judge=shares(found, ATTACKED, "attack_judge"),
        refusals=shares(found, REFUSED, "over_refusal"),
        utility=utility(found),
        detectors=detectors(found, gates),
        exports=exports(found),
        precisions=precisions(found),
        latencies=latencies(found),
        settings=settings(found),
        judges=judges(found, validated),
        missing=", ".join(TITLES[arm] for arm in TITLES if arm not in found),
    )


def _measured(found: Found) -> list[str]:
    return [arm for arm in TITLES if arm in found]


def _rate(value: Mapping[str, Any] | None) -> str:
    return rate(Rate(**value) if value else None)


def _together(shares: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    given = list(shares)
    return Rate.of(sum(one["count"] for one in given), sum(one["n"] for one in given)).model_dump()


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 2 and value == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}–{value[-1]}"
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("-o", "--out", type=Path, default=CARD)
    parser.add_argument("--page", type=Path, help="file with the short table between two marks")
    parser.add_argument("--check", action="store_true", help="fail if the card is not what the results say")
    options = parser.parse_args()
    text = render(options.results)
    if options.check and (not options.out.is_file() or options.out.read_text() != text):
        sys.exit(f"{options.out} is not what {options.results} says; run python bench/real/card.py")
    if not options.check:
        write_atomic(options.out, text.encode())
        if options.page:
            before, _, after = options.page.read_text().split(MARK)
            made = f"\n{short(load(options.results))}\n"
            write_atomic(options.page, MARK.join([before, made, after]).encode())


if __name__ == "__main__":
    main()
