"""SASA's second pass (arXiv:2507.21637): the states its probe reads, streamed for many layer pairs at once.

The published procedure runs the model twice. Pass 1 records H_f, the states of the fused layer f; pass 2 replaces the
output of the safety layer s by α_t H_f,t and runs on. H_f does not depend on pass 2, so one normal pass gives all H_l,
and each pair (s, f) costs only blocks s+1…L−1 from there: :class:`SecondPass` does that, for fits.
:func:`published_states` is the procedure to the letter, at twice the cost, to test the other against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...adapters.artifact.manifest import BaseInfo
from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ...adapters.ops.branch import BranchOp, get_branch_op
from ...adapters.ops.op import Hidden
from ...adapters.protocols import Blocks, Place
from ..data.ahead import PicturesAhead
from ..data.records import Record
from ..distributed.dealing import dealt
from ..progress import Progress
from .asking import request_of
from .batching import BatchSize, own_share, streamed
from .capture import USUAL, Reached, require_seen
from .outputs import hidden_of
from .vlm import VLM

T = TypeVar("T")
R = TypeVar("R")

OP = "FusedProjection"
_NORM = Site("final_norm")


@dataclass
class _NormalPass:
    """What a normal pass leaves behind for the branches: outputs of blocks, how each block was called, and what joined
    the stream before a block or, at the number of blocks, before the final norm."""

    hidden: dict[int, Tensor] = field(default_factory=dict)
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    joining: dict[int, Tensor] = field(default_factory=dict)
    normed: Tensor | None = None

    def joined(self, index: int, hidden: Tensor) -> Tensor:
        """The state with what joined the stream there."""
        return hidden + self.joining[index].to(hidden.device) if index in self.joining else hidden


class SecondPass:
    """A VLM as a source of the states that detectors read (``adapters.detector.BranchSource``).

    Adapters that are applied to the VLM act in the branch as well.

    Attributes:
        size: of a batch, in records.
        progress: told how many records of a stream are done.
    """

    def __init__(self, vlm: VLM, *, batch_size: int | None = None, progress: Progress | None = None) -> None:
        self.size = vlm.batch_size if batch_size is None else BatchSize(batch_size)
        self.vlm, self.progress = vlm, progress

    @property
    def base(self) -> BaseInfo:
        """The model a fitted adapter belongs to."""
        return self.vlm.base

    def head(self) -> tuple[Float[Tensor, "vocab d_model"], Float[Tensor, " vocab"] | None]:
        """Weight and bias of the LM head."""
        head = self.vlm.parts.head
        bias = getattr(head, "bias", None)
        return self.vlm.weights.of(head.weight).whole(), None if bias is None else self.vlm.weights.of(bias).whole()

    @torch.inference_mode()
    def gain(self) -> Float[Tensor, " d_model"]:
        """What the final norm multiplies each component by, beside the scale of the whole state.

        Raises:
            UsageError: the norm centres states or adds a bias, so that this does not say all that it does.
        """
        norm = self.vlm.parts.module(_NORM)
        ones = torch.ones(1, 1, self.base.d_model, dtype=self.vlm.dtype, device=self.vlm.device)
        found: Tensor = norm(ones).float().cpu().flatten()
        other: Tensor = norm(-2 * ones).float().cpu().flatten()
        if not torch.allclose(found, -other, rtol=1e-2, atol=1e-3) or found.abs().max() < 1e-3:
            raise UsageError(
                f"The final norm of {type(self.vlm.model).__name__} does more than scale states.",
                "Take another detector, such as one-pass.",
            )
        return found

    @torch.inference_mode()
    def branch_states(
        self, records: Sequence[Record], places: Sequence[Place]
    ) -> Iterator[tuple[list[Record], dict[Place, Float[Tensor, "batch d_model"]]]]:
        """Stream last-position states, float32 on the CPU.

        Args:
            places: a pair (s, f) stands for the final-norm state of its second pass, a site (a block's output or
                ``final_norm``) for that of the normal pass, and several blocks for theirs beside each other.

        Raises:
            UsageError: a place does not exist, s lies after f, there are no records, or the decoder changes states
                between its blocks, so that a branch over blocks would leave something out.
        """
        depth = len(self.vlm.parts.layers)
        for place in places:
            _require(place, depth)
        pairs = [place for place in places if isinstance(place, tuple)]
        earliest = min((safety for safety, _ in pairs), default=depth)
        op = get_branch_op(OP)
        done = 0
        ordered = _by_length(records)
        pictures = PicturesAhead(own_share(ordered, self.size, USUAL))

        def run(batch: Sequence[Record]) -> dict[Place, Float[Tensor, "batch d_model"]]:
            first = _normal_pass(
                self.vlm, _arguments(self.vlm, batch, pictures), keep=_blocks(places), from_block=earliest
            )
            passed = {Site.block(layer): state for layer, state in first.hidden.items()}
            require_seen(self.vlm, [Site.block(layer) for layer in sorted(_blocks(places))], passed)
            found: dict[Place, Tensor] = {}
            for place in places:
                if isinstance(place, tuple):
                    states = [self._branch(op, first, *place)]
                elif isinstance(place, Blocks):
                    states = [first.hidden[layer] for layer in place.layers]
                else:
                    states = [first.normed if place.kind == "final_norm" else first.hidden[place.layer]]
                # a new tensor, not a view, which would be sent whole
                found[place] = torch.cat([state[:, -1].float().cpu() for state in states], dim=1)
            return found

        for batch, found in streamed(ordered, self.size, USUAL, run):
            done += len(batch)
            if self.progress:
                self.progress(done, len(records))
            yield batch, found

    def deal(self, items: Iterable[T], compute: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        """See :class:`~safetykit.adapters.protocols.BranchSource`."""
        return dealt(items, compute)

    def _branch(self, op: BranchOp, first: _NormalPass, safety: int, fused: int) -> Hidden:
        """Blocks s+1…L−1 and the final norm, from the projected state."""
        start = first.hidden[safety]
        hidden = op.start(start, first.hidden[fused].to(start.device))
        for index in range(safety + 1, len(self.vlm.parts.layers)):
            args, kwargs = first.calls[index]
            hidden = hidden_of(self.vlm.parts.layers[index](first.joined(index, hidden), *args, **kwargs))
        return self.vlm.parts.module(_NORM)(first.joined(len(self.vlm.parts.layers), hidden))


@torch.inference_mode()
def published_states(
    vlm: VLM, records: Sequence[Record], safety: int, fused: int, batch_size: int = 32
) -> Iterator[tuple[list[Record], Float[Tensor, "batch d_model"]]]:
    """Last-position final-norm states of the paper's two full passes, one pair of layers at a time.

    Raises:
        UsageError: as :meth:`SecondPass.branch_states`.
    """
    _require((safety, fused), len(vlm.parts.layers))
    op = get_branch_op(OP)
    ordered = _by_length(records)
    pictures = PicturesAhead(ordered)
    for batch in (ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)):
        arguments = _arguments(vlm, batch, pictures)
        late = _normal_pass(vlm, arguments, keep={fused}).hidden[fused]

        def replace(module: nn.Module, args: tuple, output: Any, late: Tensor = late) -> Any:
            changed = op.start(hidden_of(output), late.to(hidden_of(output).device))
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        handle = vlm.parts.layers[safety].register_forward_hook(replace)
        try:
            normed = _normal_pass(vlm, arguments, keep=set()).normed
        finally:
            handle.remove()
        yield batch, normed[:, -1].float().cpu()


def _require(place: Place, depth: int) -> None:
    if isinstance(place, Site):
        if place.kind not in ("block", "final_norm"):
            raise UsageError(f"A detector cannot read {place}.", "It reads a block's output or final_norm.")
        place.require_within(depth)
        return
    if isinstance(place, Blocks):
        for site in place.sites:
            site.require_within(depth)
        return
    safety, fused = place
    Site.block(safety).require_within(depth)
    Site.block(fused).require_within(depth)
    if safety > fused:
        raise UsageError(
            f"The safety layer {safety} lies after the fused layer {fused}.",
            "Meaning emerges later than safety is perceived: give a safety layer that is not after the fused one.",
        )


def _blocks(places: Sequence[Place]) -> set[int]:
    """Blocks whose outputs the places need."""
    blocks = {layer for place in places if isinstance(place, tuple) for layer in place}
    blocks |= {layer for place in places if isinstance(place, Blocks) for layer in place.layers}
    return blocks | {place.layer for place in places if isinstance(place, Site) and place.layer is not None}


def _by_length(records: Sequence[Record]) -> list[Record]:
    if not records:
        raise UsageError("There are no records to read states from.", "Check the split.")
    return sorted(records, key=lambda record: (record.pictured, record.stretch, record.length))


def _arguments(vlm: VLM, batch: Sequence[Record], pictures: PicturesAhead) -> Mapping[str, Any]:
    """Of the model, for a batch."""
    requests = [request_of(record, pictures) for record in batch]
    vlm.fill_references(requests)
    return vlm.arguments(vlm.prepare(requests))


def _normal_pass(vlm: VLM, arguments: Mapping[str, Any], keep: set[int], from_block: int | None = None) -> _NormalPass:
    """Run up to the final norm; note outputs of ``keep`` and the calls of blocks after ``from_block``."""
    seen = _NormalPass()
    depth = len(vlm.parts.layers)
    first = depth if from_block is None else from_block
    handed: list[Tensor] = []  # the output of the block before

    def note_joining(index: int):
        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            if handed and given is not handed[0] and not torch.equal(given.to(handed[0].device), handed[0]):
                if vlm.parts.family.scattered:
                    seen.joining[index] = given - handed[0].to(given.device)
                    return
                raise UsageError(
                    f"This decoder changes states between its blocks {index - 1} and {index}.",
                    f"A second pass over blocks would leave that out; choose a safety layer of at least {index}.",
                )

        return note

    def note_call(index: int):
        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            rest |= {name: None for name in ("past_key_values", "past_key_value") if name in rest}
            seen.calls[index] = (args[1:], rest)

        return note

    def note_output(index: int):
        def note(module: nn.Module, args: tuple, output: Any) -> None:
            hidden = hidden_of(output)
            handed[:] = [hidden]
            if index in keep:
                seen.hidden[index] = hidden

        return note

    def note_normed(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen.normed = output
        raise Reached

    with ExitStack() as stack:
        for index, layer in enumerate(vlm.parts.layers):
            if index > first:
                stack.callback(layer.register_forward_pre_hook(note_joining(index), with_kwargs=True).remove)
                stack.callback(layer.register_forward_pre_hook(note_call(index), with_kwargs=True).remove)
            if index >= first or index in keep:
                stack.callback(layer.register_forward_hook(note_output(index)).remove)
        norm = vlm.parts.module(_NORM)
        if first < depth:
            stack.callback(norm.register_forward_pre_hook(note_joining(depth), with_kwargs=True).remove)
        stack.callback(norm.register_forward_hook(note_normed).remove)
        with suppress(Reached):
            vlm.model(**arguments, use_cache=False)
    return seen
