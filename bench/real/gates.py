"""How often gates and detectors opened, per carrier, and how well they rank: ``python bench/real/gates.py WORK``.

Reads the answers that measure.py kept (WORK/measure/…/answers) and writes ``results/gates.json``: per arm and group of
records the share of harmful and of harmless ones whose score was above 0, and the AUROC. An arm with several scores is
counted by its detector's. What never opens cannot act, whatever its strength.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from card import OPENED
from figures import GROUPS
from methods import ARMS
from sklearn.metrics import roc_auc_score

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.toolkit.evaluation.evaluate import Decision, Rate

HERE = Path(__file__).parent


def kept(file: Path) -> list[Decision]:
    """Decisions of a journal that measure.py wrote."""
    batches = [json.loads(line)[1] for line in file.read_text().splitlines()[1:]]
    return [Decision.model_validate(item) for batch in batches for item in batch]


def opened(decisions: Sequence[Decision]) -> dict[str, dict[str, Any]]:
    """Per group: share of records with a positive score by label, and the AUROC where both labels are there."""
    found: dict[str, dict[str, Any]] = {}
    for name in OPENED:
        members = [item for item in decisions if GROUPS[name](item)]
        scores = [item.scores.get("risk", next(iter(item.scores.values()), 0.0)) for item in members]
        harmful = [item.label == "harmful" for item in members]
        row: dict[str, Any] = {}
        for label, wanted in (("harmful", True), ("harmless", False)):
            mine = [score > 0 for score, bad in zip(scores, harmful, strict=True) if bad == wanted]
            if mine:
                row[label] = Rate.of(sum(mine), len(mine)).model_dump(mode="json")
        if len(set(harmful)) == 2:
            row["auroc"] = float(roc_auc_score(harmful, scores))
        found[name] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=HERE / "results/gates.json")
    options = parser.parse_args()
    fingerprint = json.loads((HERE / "parts/parts.json").read_text())["fingerprint"]
    folder = options.work / "measure" / fingerprint[:12] / "answers"
    found = {}
    for arm in ARMS:
        decisions = kept(file) if (file := folder / f"{arm}-onnx.jsonl").is_file() else []
        if any(item.scores for item in decisions):
            found[arm] = opened(decisions)
    write_atomic(options.out, canonical_json({"fingerprint": fingerprint, "arms": found}))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
