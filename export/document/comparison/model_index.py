"""``model-index.yaml``: what the Hugging Face Hub reads of a card, a model for each arm, over all data sets."""

from __future__ import annotations

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from yaml import safe_dump

from ....toolkit.comparison.results import ArmInfo, Results
from ..model_index import eval_results


def model_index(results: Results) -> str:
    """The key ``model-index`` of a card's front matter: every metric of every group, by every judge, with its interval.

    A data set's revision is the SHA-256 of its records. Take the entry of the model that the card is of.
    """
    entries = []
    for arm in results.arms:
        if found := _results(results, arm):
            name = arm.family if arm.name == "none" else f"{arm.family}-{arm.name}"
            entries += eval_results_to_model_index(name, found)
    return str(safe_dump({"model-index": entries}, sort_keys=False, allow_unicode=True))


def _results(results: Results, arm: ArmInfo) -> list[EvalResult]:
    data = {one.name: one for one in results.reported}
    return [
        result
        for one in results.figures
        if (one.family, one.arm) == (arm.family, arm.name)
        for result in eval_results(
            one.benchmark,
            data[one.benchmark].split,
            data[one.benchmark].revision,
            one.judge,
            [(row.group, row.metrics) for row in one.rows],
        )
    ]
