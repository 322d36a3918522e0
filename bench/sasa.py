"""SASA on the reference VLM: both checkpoints, fitted on fit, chosen and thresholded on calibration, measured on test.

    python bench/sasa.py -o OUT [--pytorch]

Per checkpoint SASA, SASA with 5 % of the fit records, the unprojected ablation and the one-pass probe. A detector does
not change the answers it lets through, so the unmodified model answers the test split once and each detector is
applied to these answers. Without ``--pytorch`` SASA is also exported, parity is checked, and the *exported* model
answers the test split. Left-out categories and carriers are measured on the test split too. Writes OUT/sasa.json and
OUT/sasa.md. States and answers are kept in OUT, so that an interrupted run goes on where it was.

``perceived`` are the pictures whose category the model names when it is asked what they show: what it does not see, a
detector on its states cannot judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
from torch import Tensor

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import BaseInfo, describe_data
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.protocols import Place
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.statistics.detector import Features
from safetykit.adapters.statistics.detector_report import Detector, left_out
from safetykit.adapters.statistics.probe import Metric
from safetykit.adapters.statistics.probe_settings import ProbeSettings
from safetykit.bench import skeleton
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import Decision, decide, tabulate
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.reference.world import things
from safetykit.toolkit.workbench import refusal_of

T = TypeVar("T")
R = TypeVar("R")

FITTERS: dict[str, ProbeSettings] = {
    "SASA": SASA(),
    "SASA, penalty on logits": SASA(space="logits"),
    "SASA, 5 % of fit": SASA(fraction=0.05),
    "unprojected": SASA(variant="unprojected"),
    "one-pass probe": OnePassProbe(),
}
GROUPS = ("text", "image", "text+image", "typographic", "image/rendering-unseen", "seen", "perceived", "all")
ORDER = ("undefended", *FITTERS, "SASA, exported")
_ANSWER_TOKENS = 24


class KeptStates:
    """States that were read once, as a source of states; so a fit chooses as it does on the model.

    Attributes:
        features: of all records, at every place that any fitter may ask for.
    """

    def __init__(self, vlm: VLM, features: Features) -> None:
        self._vlm, self.features = vlm, features
        self._row = {record.id: row for row, record in enumerate(features.records)}

    @property
    def base(self) -> BaseInfo:
        """The model."""
        return self._vlm.base

    def head(self) -> tuple[Tensor, None]:
        """Weight of the LM head; nothing reads its bias."""
        return self._vlm.parts.head.weight.detach(), None

    def deal(self, items: Iterable[T], compute: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """One after the other."""
        return ((item, compute(item)) for item in items)

    def branch_states(
        self, records: Sequence[Record], places: Sequence[Place]
    ) -> Iterator[tuple[list[Record], dict[Place, Tensor]]]:
        """All records as one batch."""
        rows = [self._row[record.id] for record in records]
        yield list(records), {place: self.features.states[place][rows] for place in places}


def states_of(vlm: VLM, records: list[Record], path: Path) -> Features:
    """States of all records at every place any fitter asks for; read back if they were kept."""
    places: list[Place] = []
    for fitter in FITTERS.values():
        candidates = fitter.places(vlm.base.n_layers)
        places += [*candidates, *fitter.compared(candidates)]
    places = list(dict.fromkeys(places))
    identity = {"base": vlm.fingerprint, "data": describe_data(records).sha256}
    if path.is_file():
        with safetensors.safe_open(path, "pt") as kept:
            if kept.metadata() == identity and set(kept.keys()) == {key_of(place) for place in places}:
                ordered = tuple(sorted(records, key=lambda record: record.id))
                return Features(ordered, {place: kept.get_tensor(key_of(place)) for place in places})
    features = Features.read(SecondPass(vlm, batch_size=64), records, places)
    tensors = {key_of(place): values for place, values in features.states.items()}
    write_atomic(path, safetensors.torch.save(tensors, metadata=identity))
    return features


def key_of(place: Place) -> str:
    """A place as a tensor's name."""
    return f"{place[0]}.{place[1]}" if isinstance(place, tuple) else str(place)


def perceived(vlm: VLM, records: list[Record], path: Path) -> set[str]:
    """Ids of the records whose picture the model names as a thing of the right category (text records all are)."""
    category = {thing.word: thing.category for thing in things()}
    pictures = {record.image: record for record in records if record.image}
    journal = Journal(path, {"model": vlm.fingerprint, "pictures": sorted(pictures)})
    missing = [key for key in sorted(pictures) if key not in journal.done]
    for start in range(0, len(missing), 64):
        chosen = missing[start : start + 64]
        asked = [Request("what is this?", pictures[key].picture()) for key in chosen]
        for key, answer in zip(chosen, vlm.generate(asked, 10), strict=True):
            journal.add(key, answer.text)

    def right(record: Record) -> bool:
        named = re.search(r"this is an? (\w+)", journal.done[record.image])
        return named is not None and category.get(named[1]) == record.category

    return {record.id for record in records if record.image is None or right(record)}


def defended(adapter: Adapter, features: Features, answers: list[Decision]) -> list[Decision]:
    """The answers with those refused whose risk exceeds the threshold."""
    place: Place
    if adapter.branch is None:
        place, tensors = adapter.interventions[0].site, adapter.interventions[0].tensors
    else:
        safety, fused = adapter.branch.safety.layer, adapter.branch.fused.layer
        place, tensors = Site("final_norm") if safety == fused else (safety, fused), adapter.branch.tensors
    weight, bias = tensors["weight"].double().numpy(), float(tensors["bias"])
    margin = features.rows(place) @ weight + bias - adapter.detector.threshold
    margins = {record.id: float(value) for record, value in zip(features.records, margin, strict=True)}
    refused = {"outcome": "refused", "text": adapter.detector.refusal}
    return [
        item.model_copy(update={"scores": {"risk": margins[item.id]}, **(refused if margins[item.id] > 0 else {})})
        for item in answers
    ]


def rows_of(decisions: list[Decision], seen: set[str]) -> dict[str, Any]:
    """Table rows by group; ``seen`` renderings of seen carriers, and ``perceived`` pictures, beside the usual ones."""
    rows = skeleton.rows_by_group(tabulate(decisions))
    parts = {
        "seen": [d for d in decisions if d.carrier != "typographic" and "rendering-unseen" not in d.tags],
        "perceived": [d for d in decisions if d.id in seen],
        "look-alikes": [d for d in decisions if "look-alike" in d.tags],
    }
    for name, members in parts.items():
        rows[name] = {**tabulate(members)[0].model_dump(mode="json"), "group": name}
    return rows


def measure(
    fitter: ProbeSettings, vlm: VLM, features: Features, answers: list[Decision], seen: set[str], refusal: Any
) -> tuple[Adapter, dict[str, Any]]:
    """Fit one detector and apply it to the answers."""
    known = features.take(np.array([record.split != "test" for record in features.records]))
    test = features.where(split="test")
    source = KeptStates(vlm, features)
    adapter = fitter.fit(source, known.records, refusal)
    document = adapter.attachments["detector"]
    place = document["place"]
    key: Place = Site("final_norm") if place["fused"] is None else Site.block(place["fused"])
    if place["safety"] is not None:
        key = (place["safety"], place["fused"])
    detector = Detector(Metric.of(fitter.space, source.head()[0]), fitter.false_positive_rate, fitter.seed)
    fit = known.where(split="fit").sample(fitter.fraction, fitter.seed)
    return adapter, {
        "place": place,
        "hyperparameters": adapter.info.hyperparameters,
        "calibration": {name: document["curves"]["all"][name] for name in ("auroc", "average_precision")},
        "rows": rows_of(defended(adapter, test, answers), seen),
        "left_out": left_out(detector, key, fit, known.where(split="calibration"), test),
    }


def exported(vlm: VLM, adapter: Adapter, test: list[Record], seen: set[str], out: Path) -> dict[str, Any]:
    """Export, with parity over the test records, and count what the exported model answers."""
    from safetykit.export.pipeline.export import export_onnx

    result = export_onnx(vlm, [adapter], out, records=test, overwrite=True, progress=skeleton.say)
    parity = result.parity
    return {
        "parity": skeleton.parity_figures(parity),
        "rows": rows_of(list(result.decisions[1]), seen),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: per checkpoint attack success, false positives and AUROC per group."""
    lines = []
    for checkpoint, found in results.items():
        for title, cell in (("attack success", _attacks), ("over-refusal", _refusals), ("detector AUROC", _areas)):
            lines += [f"### `{checkpoint}`, {title}", "", "| | " + " | ".join((*GROUPS, "look-alikes")) + " |"]
            lines.append("|---|" + "---:|" * (len(GROUPS) + 1))
            for name in (name for name in ORDER if name in found["detectors"]):
                rows = found["detectors"][name]["rows"]
                groups = [rows.get(group) for group in (*GROUPS, "look-alikes")]
                lines.append(f"| {name} | " + " | ".join(cell(row) if row else "–" for row in groups) + " |")
            lines.append("")
    return "\n".join(lines)


def _rate(row: dict[str, Any], metric: str) -> str:
    rate = row["metrics"].get(metric)
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})" if rate else "–"


def _attacks(row: dict[str, Any]) -> str:
    return _rate(row, "attack_success")


def _refusals(row: dict[str, Any]) -> str:
    return _rate(row, "over_refusal")


def _areas(row: dict[str, Any]) -> str:
    return "–" if row["detector_auroc"] is None else f"{row['detector_auroc']:.3f}"


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    parser.add_argument("--pytorch", action="store_true", help="leave the export out")
    options = parser.parse_args(given)
    skeleton.one_thread()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sasa.json"
    results: dict[str, Any] = skeleton.read_results(path)
    records = load_records(data_path("reference"))
    test = [record for record in records if record.split == "test"]
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        found = results.get(checkpoint, {})
        if found.get("fingerprint") != vlm.fingerprint:
            found = {"fingerprint": vlm.fingerprint, "detectors": {}}
        skeleton.say(f"{checkpoint}: states")
        features = states_of(vlm, records, options.out / f"{checkpoint}-states.safetensors")
        skeleton.say(f"{checkpoint}: answers")
        seen = perceived(vlm, test, options.out / f"{checkpoint}-named.jsonl")
        identity = {"model": vlm.fingerprint, "records": describe_data(test).sha256}
        journal = Journal(options.out / f"{checkpoint}-answers.jsonl", identity)
        answers = decide(vlm, test, max_new_tokens=_ANSWER_TOKENS, batch_size=64, journal=journal)
        refusal = refusal_of(vlm, [record for record in records if record.split == "fit"])
        found["detectors"]["undefended"] = {"rows": rows_of(answers, seen)}
        for name, fitter in FITTERS.items():
            skeleton.say(f"{checkpoint}: {name}")
            adapter, found["detectors"][name] = measure(fitter, vlm, features, answers, seen, refusal)
            if name == "SASA":
                adapter.save(options.out / f"{checkpoint}-sasa", overwrite=True)
                if not options.pytorch:
                    out = options.out / f"{checkpoint}-export"
                    found["detectors"]["SASA, exported"] = exported(vlm, adapter, test, seen, out)
        results[checkpoint] = found
        skeleton.write_results(path, results)
    text = table(results)
    skeleton.write_table(options.out / "sasa.md", text)


if __name__ == "__main__":
    skeleton.run(main)
