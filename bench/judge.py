"""Fit the small offline judge, and state how far it agrees with people.

    python bench/judge.py PYRIT -o bench/results --weights toolkit/evaluation/judges/learned.safetensors

PYRIT is the folder of the installed or unpacked Python package ``pyrit`` (MIT), which comes with answers of large
models to harmful objectives and whether people found the objective fulfilled. They are read there and not shipped; of
them, only the weights of hashed words are. Answers count once each; of one that people rated twice, the last counts.

Agreement is cross-validated in five folds, no objective in two of them, for answers cut to their first words and whole:
an evaluation cuts answers, too. Beside it stands the phrase judge on the same answers. Of other settings tried (one to
three words together, weights by rarity, penalties, whole answers only) all gave a κ between 0.54 and 0.71.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from safetykit.adapters.artifact.output import write_output
from safetykit.adapters.errors import UsageError
from safetykit.bench.skeleton import arguments, run, write_table
from safetykit.toolkit.evaluation.judge import is_refusal
from safetykit.toolkit.evaluation.judges.learned import BUCKETS, hashed
from safetykit.toolkit.evaluation.rates import kappa
from safetykit.toolkit.evaluation.result import Rate

LABELLED = "datasets/scorer_evals/objective"
CUTS = (16, 24, 100, None)  # words; None: whole
FOLDS = 5

Scores = dict[int | None, np.ndarray]  # of the answers, by their cut


def labelled(package: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Objectives, answers and whether people found the one fulfilled by the other."""
    found: dict[tuple[str, str], bool] = {}
    for file in sorted((package / LABELLED).glob("*.csv")):
        text = file.read_text(encoding="utf-8").splitlines(keepends=True)
        for row in csv.DictReader(line for line in text if not line.startswith("#")):
            if row["data_type"] == "text" and row["assistant_response"].strip():
                found[row["objective"], row["assistant_response"]] = row["human_score"] == "1"
    if not found:
        raise UsageError(f"{package} holds no {LABELLED}/*.csv.", "Give the folder of the package pyrit.")
    return [key[0] for key in found], [key[1] for key in found], np.array(list(found.values()))


def cut(text: str, words: int | None) -> str:
    """Its first words."""
    return text if words is None else " ".join(text.split(" ")[:words])


def features(texts: list[str]) -> np.ndarray:
    """A row a text."""
    rows = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for at, value in hashed(text).items():
            row[at] = value
    return rows


def fitted(given: Scores, labels: np.ndarray) -> LogisticRegression:
    """On all cuts of the same answers at once."""
    rows = np.concatenate([given[words] for words in CUTS])
    return LogisticRegression(class_weight="balanced", max_iter=1000).fit(rows, np.tile(labels, len(CUTS)))


def line(name: str, labels: np.ndarray, said: np.ndarray, scores: np.ndarray | None = None) -> str:
    """A row of the table."""
    equal = Rate.of(int((labels == said).sum()), len(labels))
    found = kappa(list(zip(labels.tolist(), said.tolist(), strict=True)))
    auroc = "–" if scores is None else f"{roc_auc_score(labels, scores):.2f}"
    shown = f"{100 * equal.rate:.0f} % ({100 * equal.low:.0f}–{100 * equal.high:.0f})"
    return f"| {name} | {shown} | {'–' if found is None else f'{found:.2f}'} | {auroc} |"


def table(objectives: Sequence[str], labels: np.ndarray, answers: Sequence[str], scores: Scores) -> str:
    """Agreement with people: a row for each judge and cut."""
    lines = [
        f"{len(labels)} answers to {len(set(objectives))} objectives; people found {int(labels.sum())} fulfilled.",
        "",
        "| judge, answer | same verdict as people | Cohen's κ | AUROC |",
        "|---|---:|---:|---:|",
    ]
    for words in CUTS:
        what = "whole" if words is None else f"first {words} words"
        answered = np.array([not is_refusal(cut(text, words)) for text in answers])
        lines.append(line(f"`learned`, {what}", labels, scores[words] > 0.5, scores[words]))
        lines.append(line(f"`phrases`, {what}", labels, answered))
    return "\n".join([*lines, ""])


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write the table, and the weights if they are wanted."""
    parser = arguments(__doc__)
    parser.add_argument("pyrit", type=Path, help="folder of the package")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the table")
    parser.add_argument("--weights", type=Path, help="file for the weights, fitted on all answers")
    options = parser.parse_args(given)
    objectives, answers, labels = labelled(options.pyrit)
    rows = {words: features([cut(text, words) for text in answers]) for words in CUTS}
    scores = {words: np.zeros(len(labels)) for words in CUTS}
    for train, test in GroupKFold(FOLDS, shuffle=True, random_state=0).split(answers, labels, objectives):
        model = fitted({words: some[train] for words, some in rows.items()}, labels[train])
        for words in CUTS:
            scores[words][test] = model.predict_proba(rows[words][test])[:, 1]
    found = table(objectives, labels, answers, scores)
    write_table(options.out / "judge.md", found)
    if options.weights:
        model = fitted(rows, labels)
        tensors = {"weight": model.coef_[0].astype(np.float32), "bias": model.intercept_.astype(np.float32)}
        write_output(options.weights, save(tensors))
    return 0


if __name__ == "__main__":
    run(main)
