"""What an adversarial picture is to bring about, as a number to be lowered, with gradients down to the pixel values.

With x the picture, q the request, y = y₁…yₙ the target's tokens and m the margin of
:mod:`safetykit.toolkit.evaluation.refusal`, a row's loss is

    jailbreak   −(1/n) Σ log P(yₜ | x, q, y<t)      the record's own response, or the opening of an answer
    toxic       −(1/n) Σ log P(yₜ | x, y<t)         the same without the request (Qi et al. 2023, arXiv 2306.13213)
    refusal     m(x, q) = log P(R) − log(1 − P(R))   the first token starts no refusal

plus, where adapters are applied and have gates or a detector with margins g (positive: open, or refused),

    evade · Σ max(0, g / |g₀| + ½)                   g₀ its margin at the picture the attack begins with.

Adapters act as in an answer. A gate is a step: gradients go through what it lets act, and none says how to close it or
what it would do if it opened; the second term is that gradient, and is 0 once the margin is half its first size
on the safe side. A detector's refusal is not differentiable at all: the term is all that the attack sees of it. What is
replayed is the gate and the detector themselves.

Without adapters a target is read in one pass. With adapters the prompt is read, then the target token by token, as it
would be generated: ops that act in one phase only, or look at the last position, then see what they see in an answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from ...adapters.errors import UsageError
from ..evaluation.refusal import RefusalTokens
from ..model.hooks import AppliedAdapters
from ..model.requests import Inputs, Request
from ..model.vlm import VLM
from .pixels import PIXELS

_TINY = 1e-6
_SAFE = 0.5  # of a margin's first size, on the safe side


class Aim:
    """The loss of one batch as a function of its pixel values.

    Args:
        hooks: of the adapters that are applied to ``vlm``.
        requests: with pictures of the size that is attacked.
        targets: a text for each of them; None aims at the margin of ``refusal``.
        most: tokens of a target that count; all of them by default.
        evade: weight of gates and detectors.

    Raises:
        UsageError: a target has no token.
    """

    def __init__(
        self,
        vlm: VLM,
        hooks: AppliedAdapters | None,
        requests: Sequence[Request],
        targets: Sequence[str] | None,
        *,
        refusal: RefusalTokens | None = None,
        most: int | None = None,
        evade: float = 0.0,
    ) -> None:
        self._vlm, self._hooks, self._refusal, self._evade = vlm, hooks, refusal, evade
        self._without = [request.without_pictures() for request in requests]
        self._inputs = vlm.inputs.prepare(requests)
        self.values = self._inputs.pictures[PIXELS]
        self._rest = {name: one for name, one in vlm.tensors(self._inputs.pictures).items() if name != PIXELS}
        self._first: dict[str, Tensor] = {}  # sizes of margins at the first call
        self._margins: dict[str, Tensor] = {}
        self._keeps_logits = "logits_to_keep" in inspect.signature(vlm.model.forward).parameters
        self._full: Inputs | None = None
        if targets is not None:
            self._full = vlm.inputs.prepare(
                [replace(one, answer=said) for one, said in zip(requests, targets, strict=True)]
            )
            ids, self._lengths = _targets(self._inputs, self._full, targets)
            self._ids = ids[:, :most]
            self._counts = self._lengths.clamp(max=self._ids.shape[1])

    def __call__(self, values: Float[Tensor, "..."]) -> Float[Tensor, " batch"]:
        """The loss of each row, in float32."""
        pictures = {**self._rest, PIXELS: values.to(self._vlm.dtype)}
        if self._hooks is not None:
            with torch.no_grad():
                self._vlm.fill_references(self._without)
        self._margins = {}
        if self._full is None:
            assert self._refusal is not None
            found = self._refusal.margin(self._prompt(pictures)[:, -1])
        elif self._hooks is None:
            found = self._at_once(self._full, pictures)
        else:
            found = self._by_token(pictures)
        return found + self._evaded() if self._evade and self._margins else found

    def _prompt(self, pictures: Mapping[str, Tensor], cache: DynamicCache | None = None) -> Tensor:
        """Logits of a pass over the prompts; of their last positions, where the model can leave out the others."""
        logits = self._vlm.forward(self._inputs, cache, pictures, **self._kept(1))
        self._note(self._prefilled())
        return logits

    def _at_once(self, full: Inputs, pictures: Mapping[str, Tensor]) -> Tensor:
        longest = int(self._lengths.max())
        logits = self._vlm.forward(full, None, pictures, **self._kept(longest + 1))[:, -longest - 1 :]
        # Rows end together, so that targets of other lengths begin at other places.
        begin = longest - self._lengths.to(logits.device)[:, None]
        places = (begin + torch.arange(self._ids.shape[1], device=logits.device)).clamp(max=longest)
        return self._mean(logits[torch.arange(len(places))[:, None], places])

    def _by_token(self, pictures: Mapping[str, Tensor]) -> Tensor:
        assert self._hooks is not None
        cache = DynamicCache()
        said = [self._prompt(pictures, cache)[:, -1]]
        mask = torch.from_numpy(self._inputs.attention_mask).to(said[0].device)
        for at in range(self._ids.shape[1] - 1):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            said.append(self._vlm.step(self._ids[:, at : at + 1].to(mask.device), mask, cache)[:, -1])
            self._note(self._hooks.scores)
        return self._mean(torch.stack(said, dim=1))

    def _mean(self, logits: Float[Tensor, "batch most vocab"]) -> Float[Tensor, " batch"]:
        """The mean over each row's own tokens of −log P."""
        ids, counts = self._ids.to(logits.device), self._counts.to(logits.device)
        losses = cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")
        return (losses * (torch.arange(ids.shape[1], device=ids.device) < counts[:, None])).sum(1) / counts

    def _kept(self, count: int) -> dict[str, int]:
        return {"logits_to_keep": count} if self._keeps_logits else {}

    def _prefilled(self) -> dict[str, Tensor]:
        if self._hooks is None:
            return {}
        found = {name: one for name, one in self._hooks.extras.items() if name.endswith(".score")}
        margin = self._hooks.margin
        return found if margin is None else {**found, "risk": margin}

    def _note(self, found: Mapping[str, Tensor]) -> None:
        """Keep of each margin the largest of an answer."""
        for name, margin in found.items():
            before = self._margins.get(name)
            self._margins[name] = margin if before is None else torch.maximum(before, margin.to(before.device))

    def _evaded(self) -> Tensor:
        for name, margin in self._margins.items():
            self._first.setdefault(name, margin.detach().abs().clamp(min=_TINY))
        device = self._vlm.device
        terms = [(one / self._first[name] + _SAFE).relu().float().to(device) for name, one in self._margins.items()]
        return self._evade * torch.stack(terms).sum(0)


def _targets(prompts: Inputs, full: Inputs, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids [batch, most] of the answers, filled up at their ends, and how many each row has."""
    rows = []
    for at, text in enumerate(texts):
        prompt, whole = (one.input_ids[at][one.attention_mask[at] > 0] for one in (prompts, full))
        shared = min(len(prompt), len(whole))
        same = prompt[:shared] == whole[:shared]
        own = whole[int(np.argmin(same)) if not same.all() else shared :]
        if not len(own):
            raise UsageError(f"The target {text!r} has no token.", "Give the records responses, or name a --target.")
        rows.append(torch.from_numpy(own.copy()))
    counts = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), counts
