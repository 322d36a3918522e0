"""The card's YAML header: what the Hugging Face Hub reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData

from ...toolkit.evaluation.evaluate import Metric

if TYPE_CHECKING:
    from ..parity.comparison import Comparison
    from .figures import Figures

TASK = "image-text-to-text"
_NAMES: dict[Metric, str] = {
    "attack_success": "attack success (harmful requests answered)",
    "refused": "harmful requests refused",
    "over_refusal": "over-refusal (harmless requests refused)",
    "exact": "harmless requests answered exactly",
}


def front_matter(figures: Figures) -> str:
    """YAML between the two lines of dashes.

    The ``model-index`` holds every metric of every group, of the export (``after``), with its interval
    and the unmodified model's value as arguments.
    """
    facts, manifest = figures.facts, figures.manifest
    # The Hub takes letters, digits, dots and dashes; of a path, the last part names the model.
    name = facts.base_model if facts else _word(figures.base_name.rstrip("/").split("/")[-1])
    methods = sorted({_word(item.method) for item in manifest.adapters})
    data = ModelCardData(
        base_model=name,
        library_name="onnx",
        pipeline_tag=TASK,
        license=(facts.base_license if facts else None) or "other",
        license_name=None if facts and facts.base_license else "that-of-the-base-model",
        tags=["onnx", "onnxruntime", "safetykit", "safety", "vision-language", *methods, manifest.precision],
        model_name="-".join([name.split("/")[-1], *methods, manifest.precision]),
        eval_results=_results(figures.comparison) if figures.comparison else None,
        base_fingerprint=manifest.base.fingerprint,
    )
    return data.to_yaml(line_break="\n").strip() + "\n"


def _word(text: str) -> str:
    """A tag of letters, digits, dots and dashes."""
    return re.sub(r"[^\w.]+", "-", text)


def _plain(text: str) -> str:
    """Text without what could open a tag; the header is shown as it is by what reads no YAML."""
    return re.sub(r"[<>]", "", text)


def _results(comparison: Comparison) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=TASK,
            dataset_type="safetykit-records",
            dataset_name=_plain(f"{comparison.dataset}: {row.group}"),
            dataset_config=_plain(row.group),
            dataset_split=comparison.after.split,
            dataset_revision=comparison.data.sha256,
            metric_type=metric,
            metric_name=_NAMES[metric],
            metric_value=pair.after.rate,
            metric_args={
                "n": pair.after.n,
                "low": pair.after.low,
                "high": pair.after.high,
                "unmodified": pair.before.rate,
            },
        )
        for row in comparison.rows()
        for metric, pair in row.pairs.items()
    ]
