"""What a runtime can carry: adapters that would do nothing there are refused by name, never shipped silently.

A runtime that drives the graphs by itself (``RuntimeLayout.own_loop``) feeds them token ids, pictures and the KV cache,
and reads the logits. It does not ask twice, looks at no risk and puts no retrieved text before a prompt. What it
carries through the answer is the cache, so that held gates travel there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx_ir as ir

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import retrieval_of
from .registry import get_layout

_PLAIN = "Export it with --layout onnx."


def require_carried(adapters: Sequence[Adapter], layout: str, *, enforce: bool) -> None:
    """Refuse adapters whose effect would be lost in a layout's runtime; worth calling before long work.

    Raises:
        UsageError: naming every such op with the reason.
    """
    if layout == "onnx":
        return
    lost = [
        f"{item.op} at {item.site} needs a second run of the same request without its picture"
        for adapter in adapters
        for item in adapter.interventions
        if item.make_op().runtime_inputs
    ]
    remedy = _PLAIN
    if get_layout(layout).own_loop:
        if the_detector(adapters) is not None and not enforce:
            lost.append("nobody there reads the detector's risk")
            if len(lost) == 1:
                remedy = "Pass --enforce, so that the graph itself forces the refusal; or export with --layout onnx."
        found = retrieval_of(adapters)
        if found is not None and found[0].prefix:
            lost.append("nobody there puts retrieved texts before the prompt")
            remedy = _PLAIN
    if lost:
        raise UsageError(f"Layout {layout} cannot carry this: {'; '.join(lost)}.", remedy)


def require_fed(model: ir.Model, what: str, fed: Collection[str], layout: str) -> None:
    """Refuse a graph with an input that its runtime does not feed and that has no default.

    Args:
        fed: names of inputs; one that ends in a dot stands for all that begin so.

    Raises:
        UsageError: naming the inputs.
    """
    prefixes = tuple(name for name in fed if name.endswith("."))
    needed = [str(value.name) for value in model.graph.inputs if value.name not in model.graph.initializers]
    unknown = [name for name in needed if name not in fed and not name.startswith(prefixes or ("\0",))]
    if unknown:
        raise UsageError(
            f"Runtimes of layout {layout} do not feed {', '.join(unknown)}, which the {what} graph needs.",
            _PLAIN,
        )
