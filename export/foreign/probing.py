"""Questions that a foreign decoder answers best by running: random states, small shapes.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ...adapters.errors import InvalidArtifact, UnsupportedGraph
from ..names import ATTENTION_MASK, INPUT_IDS, INPUTS_EMBEDS, LOGITS, PAST, POSITION_IDS
from ..runtime.sessions import open_session
from .merged import SWITCH

_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}
# Largest difference of logits, as a share of the largest one, between right computations in these types.
_ROUNDING = {"tensor(float)": 1e-4, "tensor(float16)": 2e-2}


def open_model(model: ir.Model, folder: Path) -> Any:
    """A session for a graph whose external weights lie in ``folder``."""
    return open_session(ir.serde.serialize_model(model).SerializeToString(), data_folder=folder)


def require_same_prompt(merged: Path, cached: ir.Model) -> None:
    """Refuse a merged decoder whose body with a cache does not read prompts as its other body does.

    Raises:
        UnsupportedGraph: it does not.
    """
    advice = "Export the decoder again with a current exporter, which writes one graph for prompts and further tokens."
    theirs = open_session(merged)
    feeds = _prompt(theirs, rows=2, tokens=5)
    reference = theirs.run([LOGITS], feeds | {SWITCH: np.array([False])})[0]
    ours = open_model(cached, merged.parent)
    names = {value.name for value in ours.get_inputs()}
    try:
        found = ours.run([LOGITS], {name: value for name, value in feeds.items() if name in names}, _silent())[0]
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise UnsupportedGraph(
            f"The merged decoder's body with a cache cannot read a prompt ({str(error).splitlines()[0][:160]}).", advice
        ) from None
    limit = _ROUNDING.get(next(value.type for value in theirs.get_outputs() if value.name == LOGITS), 1e-4)
    if found.shape != reference.shape or np.abs(found - reference).max() > limit * np.abs(reference).max():
        raise UnsupportedGraph(
            "The merged decoder's two bodies read a prompt differently, so neither can stand for both.", advice
        )


def understands_padding(decoder: Path, graph: ir.Graph) -> bool:
    """Whether a row padded on the left gets the logits it gets alone."""
    if any(node.op_type == "GroupQueryAttention" and _lacks_bias(node) for node in graph):
        return False  # it takes a row's length for the place of its last token
    session = open_session(decoder)
    feeds = _prompt(session, rows=2, tokens=6)
    feeds[ATTENTION_MASK][1, :2] = 0
    if POSITION_IDS in feeds:
        feeds[POSITION_IDS][..., 1, :] = np.maximum(np.arange(6) - 2, 0)
    alone = dict(feeds)
    alone |= {name: feeds[name][1:, 2:] for name in (INPUTS_EMBEDS, ATTENTION_MASK)}
    alone |= {name: value[1:] for name, value in feeds.items() if name.startswith(PAST)}
    if POSITION_IDS in feeds:
        alone[POSITION_IDS] = feeds[POSITION_IDS][..., 1:, 2:]
    padded, single = (session.run([LOGITS], one)[0] for one in (feeds, alone))
    limit = _ROUNDING.get(session.get_outputs()[0].type, 1e-4) * np.abs(single).max()
    return bool(np.abs(padded[1, -1] - single[0, -1]).max() <= limit)


def gives_last_logits_only(decoder: Path) -> bool:
    """Whether logits come at the last position of a prompt alone.

    Raises:
        InvalidArtifact: the decoder does not run.
    """
    session = open_session(decoder)
    try:
        logits = session.run([LOGITS], _prompt(session, rows=1, tokens=4), _silent())[0]
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        reason = str(error).splitlines()[0][:200]
        raise InvalidArtifact(f"The decoder does not run: {reason}", "Export it again.") from None
    return logits.shape[1] == 1


def continues_prompts(decoder: Path) -> bool:
    """Whether one row's cache can be followed by several tokens at once."""
    session = open_session(decoder)
    feeds = _prompt(session, rows=1, tokens=3)
    feeds[ATTENTION_MASK] = np.ones((1, 5), feeds[ATTENTION_MASK].dtype)
    if POSITION_IDS in feeds:
        feeds[POSITION_IDS] = feeds[POSITION_IDS] + 2
    for name, value in feeds.items():
        if name.startswith(PAST):
            feeds[name] = np.zeros((1, value.shape[1], 2, value.shape[3]), value.dtype)
    try:
        session.run([LOGITS], feeds, _silent())
    except Exception:  # ONNX Runtime's exceptions have no public base class
        return False
    return True


def _silent() -> Any:
    """Options of a run that may fail: ONNX Runtime would print the error too."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _lacks_bias(node: ir.Node) -> bool:
    return len(node.inputs) < 11 or node.inputs[10] is None


def _prompt(session: Any, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """A prompt of random embeddings or tokens with an empty cache."""
    random = np.random.default_rng(0)
    feeds: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        name, dtype = value.name, _TYPES[value.type]
        if name == SWITCH:
            continue
        shape = _sizes(value.shape, name, rows, tokens)
        if name == INPUTS_EMBEDS:
            feeds[name] = random.standard_normal(shape).astype(dtype)
        elif name == INPUT_IDS:
            feeds[name] = random.integers(1, 8, shape).astype(dtype)
        elif name == ATTENTION_MASK:
            feeds[name] = np.ones(shape, dtype)
        elif name == POSITION_IDS:
            feeds[name] = np.broadcast_to(np.arange(tokens), shape).astype(dtype)
        else:
            feeds[name] = np.zeros(shape, dtype)
    return feeds


def _sizes(shape: list[int | str | None], name: str, rows: int, tokens: int) -> list[int]:
    axes: Mapping[int, int] = {0: rows, 1: tokens}
    if name.startswith("past"):
        axes = {0: rows, 2: 0}
    elif name == POSITION_IDS:
        axes = {len(shape) - 2: rows, len(shape) - 1: tokens}
    return [size if isinstance(size, int) else axes.get(axis, 0) for axis, size in enumerate(shape)]
