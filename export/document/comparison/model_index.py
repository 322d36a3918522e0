"""``model-index.yaml``: what the Hugging Face Hub reads of a card, a model for each arm, over all data sets."""

from __future__ import annotations

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index
from yaml import safe_dump

from ....toolkit.comparison.results import WORDS, ArmInfo, Results
from ..front_matter import TASK


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
        EvalResult(
            task_type=TASK,
            dataset_type="safetykit-records",
            dataset_name=f"{one.benchmark}: {row.group}",
            dataset_config=row.group,
            dataset_split=data[one.benchmark].split,
            dataset_revision=data[one.benchmark].revision,
            metric_type=metric,
            metric_name=f"{WORDS[metric]}, judge {one.judge}",
            metric_value=rate.rate,
            metric_args={"n": rate.n, "low": rate.low, "high": rate.high, "judge": one.judge},
        )
        for one in results.figures
        if (one.family, one.arm) == (arm.family, arm.name)
        for row in one.rows
        for metric, rate in row.metrics.items()
    ]
