"""Running adapters in PyTorch: forward hooks that exist exactly as long as a ``with`` block.

A detector's branch runs when a prefill reaches the LM head, before anything is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...adapters.artifact.adapter import Adapter, the_branch, the_detector
from ...adapters.artifact.intervention import Intervention
from ...adapters.artifact.sites import Site
from ...adapters.artifact.stack import require_reading
from ...adapters.errors import UsageError
from ...adapters.ops.forcing import ForcedRefusal
from ...adapters.ops.gating import GatedOp, decides
from ...adapters.ops.op import Detector, Observer, ScopeMask
from .branching import BranchRun
from .parts import Parts

_VISION_SITES = ("vision", "projector")


class AppliedAdapters:
    """The interventions and the detector that are active on a model, and what they saw in the last prefill.

    Attributes:
        extras: ``{k}.{name}`` → tensor, from the last prefill; k counts the interventions. A detector's log-odds of
            harm [batch] are called ``risk``.
        magnitudes: size of what each gate's ``score`` in ``extras`` adds up, see :meth:`GatedOp.magnitude`.
        scores: ``{k}.score`` → margins [batch] of the last call, of gates that act in the answer as well.
        detector: when to refuse; None without a detector.
        references: per-call inputs of ops that need them, by intervention index.
        enabled: False runs the model untouched while still recording ``extras``.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Parts,
        image_token_id: int,
        adapters: Sequence[Adapter],
        *,
        enforce: bool = False,
    ) -> None:
        """With ``enforce``, the logits of refused rows are forced as an enforcing export forces them.

        Raises:
            UsageError: ``enforce`` without a detector, two detectors, or a branch's site does not exist.
        """
        self.detector = the_detector(adapters)
        require_reading(adapters)
        if enforce and self.detector is None:
            raise UsageError("There is no detector whose refusal could be enforced.", "Give one, or leave out enforce.")
        self.interventions: list[Intervention] = [item for adapter in adapters for item in adapter.interventions]
        self.extras: dict[str, Tensor] = {}
        self.magnitudes: dict[str, Tensor] = {}
        self.scores: dict[str, Tensor] = {}
        self.references: dict[int, Tensor] = {}
        self.enabled = True
        self._held: dict[int, Tensor] = {}  # margins of held gates, by intervention index
        self._read: dict[Site, Tensor] = {}  # last positions of sites that ops elsewhere read
        self._model, self._parts, self._image_token_id = model, parts, image_token_id
        self._past_length = torch.tensor(0)
        self._new_tokens = 0
        self._vision_mask: Tensor | None = None
        self._enforce = enforce
        branch = the_branch(adapters)
        self._branch = BranchRun(parts, branch) if branch else None

    @property
    def margin(self) -> Float[Tensor, " batch"] | None:
        """Risk minus threshold of the last prefill's rows, in float32 as in a graph; None without a detector."""
        if self.detector is None:
            return None
        risk = self.extras["risk"]
        return risk - torch.tensor(self.detector.threshold, dtype=torch.float32, device=risk.device)

    def forced_rows(self) -> Bool[np.ndarray, " batch"]:
        """Rows of the last prefill whose logits were forced; none without ``enforce``."""
        if not self._enforce or self.margin is None:
            return np.zeros(0, dtype=bool)
        return (self.margin > 0).cpu().numpy()

    @property
    def touches_vision(self) -> bool:
        """Whether image features are changed, so that they must not be cached."""
        return any(item.site.kind in _VISION_SITES for item in self.interventions)

    @property
    def needs_reference(self) -> bool:
        """Whether an op asks for the text-only state of the same query."""
        return any(item.make_op().runtime_inputs for item in self.interventions)

    @contextmanager
    def active(self) -> Iterator[AppliedAdapters]:
        """Register the hooks; they are removed on every way out, also when registering fails."""
        sites = {site for item in self.interventions for site in (item.site, *item.reads)}
        taps = {site: self._parts.tap(site) for site in sites}  # which may run the model
        with ExitStack() as stack:
            handle = self._model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            stack.callback(handle.remove)
            for index, item in enumerate(self.interventions):
                run = self._runner(index, item)
                if item.site.kind in _VISION_SITES:
                    run = _as_one_row(run)
                stack.callback(taps[item.site].change(run).remove)
            for site in {site for item in self.interventions for site in item.reads}:
                stack.callback(taps[site].read(self._reader(site)).remove)
            if self._branch:
                self._branch.watch(stack, self._detecting)
            if self.detector:
                stack.callback(self._parts.head.register_forward_hook(self._after_head).remove)
            yield self

    def _detecting(self) -> bool:
        return self.enabled and int(self._past_length) == 0

    def _after_head(self, module: nn.Module, args: Any, logits: Tensor) -> Tensor | None:
        """Run the branch of a prefill; with ``enforce``, the logits of refused rows are replaced.

        A branch reads whole prompts: the risk of one whose further chunk this is, is infinite.
        """
        if not (self.enabled and decides(int(self._past_length), self._new_tokens)):
            return None
        if self._branch:
            whole = self._detecting()
            self.extras["risk"] = self._branch.risk() if whole else torch.full((len(logits),), torch.inf)
        if not self._enforce or self.detector is None:
            return None
        settings = (torch.tensor(self.detector.threshold), torch.tensor(self.detector.refusal_token))
        given = (self.extras["risk"], *settings)
        return ForcedRefusal()(logits, *(value.to(logits.device) for value in given))

    def _before_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Note what the scope masks need; hooks deeper in the model see only hidden states."""
        cache = kwargs.get("past_key_values")
        length = cache.get_seq_length() if cache is not None else 0
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        self._past_length = torch.tensor(int(length))
        given = kwargs.get("inputs_embeds") if input_ids is None else input_ids
        self._new_tokens = 0 if given is None else given.shape[1]
        self._vision_mask = None if input_ids is None else input_ids == self._image_token_id

    def _gate(self, index: int, hidden: Tensor, past: int) -> dict[str, Tensor]:
        """Whether this call decides a held gate, and the margins [batch] that were decided before.

        Raises:
            UsageError: answers go on whose prompts these hooks have not seen.
        """
        deciding, rows = decides(past, self._new_tokens), hidden.shape[0]
        held = self._held.get(index)
        if deciding:
            held = torch.zeros(rows)
        elif held is None or len(held) != rows:
            raise UsageError(
                f"A gate was decided for {0 if held is None else len(held)} rows, and {rows} go on.",
                "Start with the prompts, with the adapters applied.",
            )
        return {"decides": torch.tensor(deciding, device=hidden.device), "held": held.to(hidden.device)}

    def _reader(self, site: Site) -> Callable[[Tensor], None]:
        def read(hidden: Tensor) -> None:
            self._read[site] = hidden[:, -1].float()

        return read

    def _runner(self, index: int, item: Intervention):
        op, mask_of, on_pictures = item.make_op(), ScopeMask(item.scope, item.phase), item.site.kind in _VISION_SITES
        run_op = item.gated_op()
        tensors = dict(item.tensors)

        def run(hidden: Tensor) -> Tensor:
            device = hidden.device  # of a spread model, each block's may be another
            tensors.update({name: tensor.to(device) for name, tensor in tensors.items()})
            if on_pictures:
                past, vision = torch.tensor(0), torch.ones(hidden.shape[:2], dtype=torch.bool, device=device)
            else:
                past, vision = self._past_length, self._vision_mask
                vision = None if vision is None else vision.to(device)
                if vision is None:
                    if item.scope in ("vision", "text"):
                        raise UsageError(
                            f"Scope {item.scope!r} needs to know which tokens are pictures.",
                            "Call the model with input_ids, not with inputs_embeds alone.",
                        )
                    vision = torch.zeros(hidden.shape[:2], dtype=torch.bool, device=device)
            prompt = on_pictures or decides(int(past), self._new_tokens)
            scope = mask_of(hidden, past.to(device), vision)
            if not self.enabled:
                scope = torch.zeros_like(scope)
            given: dict[str, Tensor] = {}
            if item.reads:
                given["earlier"] = torch.cat([self._read[site].to(device) for site in item.reads], dim=1)
            if isinstance(op, Detector):
                results = (hidden, op(hidden, **given, **tensors))
            elif isinstance(op, Observer):
                results = (hidden, *op(hidden, scope, **tensors))
            else:
                given |= self._gate(index, hidden, int(past)) if item.holds else {}
                blank = torch.zeros(hidden.shape[0], hidden.shape[-1], device=device)
                for name in op.runtime_inputs:
                    given[name] = self.references.get(index, blank).to(device) if prompt else blank
                results = run_op(hidden, scope, **given, **tensors)
            changed, *found = results
            if self._branch and self._branch.running:
                return changed
            if item.holds:
                self._held[index] = found[op.extras.index("score")]
            if isinstance(op, GatedOp) and item.phase != "prefill":
                self.scores[f"{index}.score"] = found[op.extras.index("score")]
            if prompt:
                names = [*(f"{index}.{name}" for name in op.extras), *op.outputs]
                self.extras |= dict(zip(names, found, strict=True))
                if isinstance(op, GatedOp):
                    read = {"earlier": given["earlier"]} if item.reads else {}
                    self.magnitudes[f"{index}.score"] = op.magnitude(hidden, **read, **tensors)
            return changed

        return run


def _as_one_row(run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Towers for pictures of any size give all their tokens in one row [tokens, d], without a batch."""
    return lambda hidden: run(hidden[None])[0] if hidden.ndim == 2 else run(hidden)
