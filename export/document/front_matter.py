"""The card's YAML header: what the Hugging Face Hub reads."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCardData

from .model_index import TASK, eval_results

if TYPE_CHECKING:
    from ..parity.comparison import Comparison
    from .figures import Figures


def front_matter(figures: Figures) -> str:
    """YAML between the two lines of dashes.

    The ``model-index`` holds every metric of every group by every judge, of the export (``after``), with its interval
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


def _results(comparison: Comparison) -> list[EvalResult]:
    judged = comparison.judges()
    tables = [(one.judge, one.rows) for one in judged] or [(comparison.after.judge, comparison.rows())]
    return [
        result
        for judge, rows in tables
        for result in eval_results(
            comparison.dataset,
            comparison.after.split,
            comparison.data.sha256,
            judge,
            [(row.group, {metric: pair.after for metric, pair in row.pairs.items()}) for row in rows],
            {(row.group, metric): pair.before.rate for row in rows for metric, pair in row.pairs.items()},
        )
    ]
