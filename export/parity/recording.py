"""What PyTorch gave, recorded before any session is opened, so that a model and its graphs are never both in memory.

A recording is made while the model has its weights: for each batch of requests the logits of the prompt and of each
step, which tokens are prompt, scores, and rows whose refusal is forced. Logits, which are large, go to files of a
:class:`Store`, from which they are mapped; whoever opened the store's folder deletes it. With the recording, the graphs
are then compared one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float

from ...toolkit.model.requests import Request
from ..names import RETRIEVAL_QUERY, RETRIEVED_SCORES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ...toolkit.model.hooks import AppliedAdapters
    from ...toolkit.model.vlm import VLM


class Store:
    """Arrays in files of a folder; without a folder, in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder, self._numbers = folder, count()

    def keep(self, array: np.ndarray) -> np.ndarray:
        """The same values, mapped from a file."""
        if self._folder is None:
            return array
        path = self._folder / f"{next(self._numbers)}.npy"
        np.save(path, array)
        kept: np.ndarray = np.load(path, mmap_mode="r")
        return kept


@dataclass(frozen=True)
class Scores:
    """What ops and a detector gave at prefill.

    Attributes:
        values: each [batch] output and what is retrieved, by name, as exports call it. Retrieved ids are left out:
            near-ties may swap.
        sizes: of the terms that a gate's score sums, which its rounding grows with.
    """

    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, hooks: AppliedAdapters) -> Scores:
        """Those of the last prefill."""
        names = [name for name, one in hooks.extras.items() if one.ndim == 1 or name in _RETRIEVED]
        sizes = {name: float(hooks.magnitudes[name].max()) for name in names if name in hooks.magnitudes}
        return cls({name: hooks.extras[name].float().cpu().numpy() for name in names}, sizes)


_RETRIEVED = (RETRIEVED_SCORES, RETRIEVAL_QUERY)


@dataclass(frozen=True)
class Recorded:
    """What PyTorch gave for one batch, with the tokens that it chose greedily.

    Attributes:
        real: whether a position holds a token of the prompt, not padding.
        prompt: logits at all positions of the prompt.
        steps: logits at each cached step.
        scores: at prefill; none without adapters.
        forced: rows whose refusal is forced at the last position; None where nothing is enforced.
        gates: margins of gates that act in the answer, by name, at the prompt and at each step.
    """

    real: Bool[np.ndarray, "batch seq"]
    prompt: Float[np.ndarray, "batch seq vocab"]
    steps: Float[np.ndarray, "steps batch vocab"]
    scores: Scores
    forced: Bool[np.ndarray, " batch"] | None = None
    gates: Mapping[str, Float[np.ndarray, "calls batch"]] = field(default_factory=dict)


def record(
    vlm: VLM, requests: Sequence[Request], steps: int, hooks: AppliedAdapters | None = None, store: Store | None = None
) -> Recorded:
    """Run ``vlm`` on a batch and on ``steps`` cached tokens after it. The caller has applied the adapters.

    Args:
        hooks: what the caller got for applying them.
        store: where logits are kept; in memory by default.
    """
    store, real = store or Store(), vlm.prepare(requests).attention_mask.astype(bool)
    found = torch_logits(vlm, requests, steps)
    prompt = store.keep(next(found))
    forced = hooks.forced_rows() if hooks is not None else np.zeros(0, dtype=bool)
    scores = Scores() if hooks is None else Scores.of(hooks)
    gates = {name: [margin.float().cpu().numpy()] for name, margin in (hooks.scores if hooks else {}).items()}
    after: list[np.ndarray] = []
    for logits in found:
        after.append(logits[:, -1])
        for name, margins in gates.items():
            assert hooks is not None
            margins.append(hooks.scores[name].float().cpu().numpy())
    stacked = np.stack(after) if after else np.zeros((0, len(prompt), prompt.shape[-1]), np.float32)
    opened = {name: np.stack(margins) for name, margins in gates.items()}
    return Recorded(real, prompt, store.keep(stacked), scores, forced if forced.any() else None, opened)


def record_scores(vlm: VLM, requests: Sequence[Request], hooks: AppliedAdapters) -> Scores:
    """Run the prompts of a batch, under adapters that the caller has applied."""
    vlm.prefill(requests)
    return Scores.of(hooks)


@torch.inference_mode()
def torch_logits(vlm: VLM, requests: Sequence[Request], steps: int) -> Iterator[Float[np.ndarray, "batch seq vocab"]]:
    """PyTorch's logits of prompts, and then at each step of its greedy answers."""
    cache = vlm.empty_cache()
    logits, inputs = vlm.prefill(requests, cache)
    yield logits.float().cpu().numpy()
    mask = torch.from_numpy(inputs.attention_mask).to(vlm.device)
    for _ in range(steps):
        tokens = logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        logits = vlm.step(tokens, mask, cache)
        yield logits.float().cpu().numpy()
