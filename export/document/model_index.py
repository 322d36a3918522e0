"""``model-index``, as the Hugging Face Hub reads it: figures of an export's card and of a comparison alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from huggingface_hub import EvalResult

from ...toolkit.evaluation.result import Metric, Rate

TASK = "image-text-to-text"
_NAMES: dict[Metric, str] = {
    "attack_success": "attack success (harmful requests answered)",
    "refused": "harmful requests refused",
    "over_refusal": "over-refusal (harmless requests refused)",
    "exact": "harmless requests answered exactly",
}


def eval_results(
    data: str,
    split: str,
    revision: str,
    judge: str,
    rows: Iterable[tuple[str, Mapping[Metric, Rate]]],
    unmodified: Mapping[tuple[str, Metric], float] | None = None,
) -> list[EvalResult]:
    """Every metric of every group by a judge, with its interval.

    Args:
        data: how the records are called; ``revision``: SHA-256 of them.
        rows: groups with their shares.
        unmodified: of the model without adapters, by group and metric, where it is known.
    """
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="safetykit-records",
            dataset_name=_plain(f"{data}: {group}"),
            dataset_config=_plain(group),
            dataset_split=split,
            dataset_revision=revision,
            metric_type=metric,
            metric_name=_plain(f"{_NAMES[metric]}, judge {judge}"),
            metric_value=rate.rate,
            metric_args={
                "n": rate.n,
                "low": rate.low,
                "high": rate.high,
                "judge": _plain(judge),
                **({"unmodified": unmodified[group, metric]} if unmodified is not None else {}),
            },
        )
        for group, metrics in rows
        for metric, rate in metrics.items()
    ]


def _plain(text: str) -> str:
    """Text without what could open a tag; the header is shown as it is by what reads no YAML."""
    return re.sub(r"[<>]", "", text)
