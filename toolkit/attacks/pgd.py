"""Projected gradient descent on the picture (Madry et al. 2018, arXiv 1706.06083), as it is aimed at vision-language
models (Qi et al. 2023, arXiv 2306.13213; Carlini et al. 2023, arXiv 2306.15447):

    x ← Π(x − α · sign ∇ₓ L(x)),   Π onto ‖x − x₀‖∞ ≤ ε and onto 0 … 255.

x₀ is the picture as the model sees it (:mod:`.pixels`), L the loss of :mod:`.objectives`. A universal attack has one
change δ for all records, x = Π(x₀ + δ), and takes a step for each batch; where all begin with the same picture, it is
one picture. What is kept is the best that was seen, rounded to 8 bits: ε is a whole number of levels, so that rounding
leaves neither the ball nor the range.

Deviations: the first step is a random one of at most α, not one anywhere in the ball, which at wide ε would wash out
what the picture shows. Of a universal attack the mean loss over all records is looked at ten times, and the best of
these is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ...adapters.errors import UsageError
from ..data.records import Record
from ..evaluation.refusal import RefusalTokens
from ..model.hooks import AppliedAdapters
from ..model.requests import Request
from ..model.vlm import VLM
from .objectives import Aim
from .options import LEVELS, PgdOptions
from .pixels import Picture8, Pixels

LOOKS = 10  # how often a universal attack is looked at as a whole
_CLOSE = 1e-4  # of pixel values


@dataclass(frozen=True)
class Start:
    """A record with the picture that its attack begins with.

    Attributes:
        clean: the picture as the model sees it.
    """

    record: Record
    clean: Picture8
    pixels: Pixels


@dataclass(frozen=True)
class Found:
    """What an attack has made of a record's picture.

    Attributes:
        picture: of 8 bits.
        before, after: the loss of the clean picture, and of the best one before it was rounded.
        rounded: the loss of ``picture``, prepared from its pixels as the model's processor does.
    """

    picture: Picture8
    before: float
    after: float
    rounded: float


@dataclass
class State:
    """How far a universal attack is.

    Attributes:
        step: steps that are done.
        change: δ [height, width, 3], in levels; ``best``: the one with the lowest mean loss so far.
    """

    step: int
    change: np.ndarray
    best: np.ndarray
    lowest: float = float("inf")


class Pgd:
    """The attack on one model.

    Args:
        vlm: with the adapters applied that it is to get past.
        hooks: of these.
        refusal: how the model refuses, for the objective ``refusal``.
    """

    def __init__(
        self,
        vlm: VLM,
        options: PgdOptions,
        hooks: AppliedAdapters | None = None,
        refusal: RefusalTokens | None = None,
    ) -> None:
        self._vlm, self._options, self._hooks, self._refusal = vlm, options, hooks, refusal

    def on_each(self, starts: Sequence[Start], told: Callable[[], None] = lambda: None) -> list[Found]:
        """A picture for each of a batch of records, all of the same size; ``told`` hears every step."""
        options = self._options
        with _frozen(self._vlm.model):
            batch = _Batch(self, starts)
            clean = batch.clean
            before = batch.losses(clean).detach()
            low, high = (clean - options.levels).clamp(min=0), (clean + options.levels).clamp(max=LEVELS)
            first = torch.stack([self._first(start.clean.shape, start.record.id) for start in starts]).to(clean)
            x = torch.clamp(clean + first, low, high)
            best, lowest = clean.clone(), before.clone()

            def keep(losses: Tensor) -> None:
                better = losses.detach() < lowest
                best[better], lowest[better] = x[better], losses.detach()[better]

            for _ in range(options.steps):
                losses, slope = batch.slope(x)
                keep(losses)
                x = torch.clamp(x - options.step * slope.sign(), low, high)
                told()
            with torch.no_grad():
                keep(batch.losses(x))
            return batch.rounded(best, before, lowest)

    def on_all(
        self,
        batches: Sequence[Sequence[Start]],
        state: State | None = None,
        keep: Callable[[State], None] = lambda _: None,
        told: Callable[[], None] = lambda: None,
    ) -> list[list[Found]]:
        """One change for all records of all batches.

        Args:
            state: to go on from; ``keep`` is given one now and then.

        Raises:
            UsageError: pictures differ in size.
        """
        shapes = {start.clean.shape for batch in batches for start in batch}
        if len(shapes) > 1:
            sizes = ", ".join(sorted(f"{shape[1]}x{shape[0]}" for shape in shapes))
            raise UsageError(
                f"One change does not fit pictures of several sizes: the model sees {sizes}.",
                "Leave out --universal, or give records whose pictures have the same shape.",
            )
        options, (shape,) = self._options, shapes
        with _frozen(self._vlm.model):
            made = [_Batch(self, batch) for batch in batches]
            with torch.no_grad():
                before = [batch.losses(batch.clean) for batch in made]
            if state is None:
                first = self._first(shape, "").clamp(-options.levels, options.levels).numpy()
                state = State(0, first, np.zeros(shape, dtype=np.float32), float(torch.cat(before).mean()))
            change = torch.from_numpy(state.change.copy()).to(self._vlm.device)
            every = -(-options.steps // LOOKS)
            for step in range(state.step, options.steps):
                batch = made[self._turn(step, len(made))]
                _, slope = batch.slope(torch.clamp(batch.clean + change, 0, LEVELS))
                moved = change - options.step * slope.sum(0).sign()
                change = moved.clamp(-options.levels, options.levels)
                told()
                if (step + 1) % every == 0 or step + 1 == options.steps:
                    with torch.no_grad():
                        mean = float(torch.cat([one.losses(one.moved(change)) for one in made]).mean())
                    state = replace(state, step=step + 1, change=change.cpu().numpy())
                    if mean < state.lowest:
                        state = replace(state, best=state.change, lowest=mean)
                    keep(state)
            best = torch.from_numpy(state.best).to(self._vlm.device)
            found = []
            for batch, clean_losses in zip(made, before, strict=True):
                with torch.no_grad():
                    after = batch.losses(batch.moved(best))
                found.append(batch.rounded(batch.moved(best.round()), clean_losses, after))
            return found

    def aim(self, starts: Sequence[Start], pictures: Sequence[Picture8]) -> Aim:
        """The loss of a batch with these pictures."""
        options, toxic = self._options, self._options.objective == "toxic"
        shown = [Image.fromarray(picture) for picture in pictures]
        requests = [
            Request("" if toxic else one.record.prompt, picture) for one, picture in zip(starts, shown, strict=True)
        ]
        targets = (
            None if options.objective == "refusal" else [options.target or one.record.response or "" for one in starts]
        )
        return Aim(
            self._vlm,
            self._hooks,
            requests,
            targets,
            refusal=self._refusal,
            most=options.target_tokens,
            evade=options.evade,
        )

    def _first(self, shape: Sequence[int], name: str) -> Tensor:
        """The random first step; the same for a record whichever batch it is in."""
        seed = int.from_bytes(hashlib.sha256(f"{self._options.seed} {name}".encode()).digest()[:8], "big")
        drawn = np.random.default_rng(seed).uniform(-self._options.step, self._options.step, shape)
        return torch.from_numpy(drawn.astype(np.float32))

    def _turn(self, step: int, batches: int) -> int:
        """Which batch a step looks at: each once, in an order of its own, then again."""
        turn, at = divmod(step, batches)
        return int(np.random.default_rng([self._options.seed, turn]).permutation(batches)[at])


class _Batch:
    """Records of one size, their clean pictures, and the loss as a function of the pictures' pixels."""

    def __init__(self, attack: Pgd, starts: Sequence[Start]) -> None:
        self._attack, self._starts = attack, starts
        device = attack._vlm.device
        pixels = starts[0].pixels
        self._aim = attack.aim(starts, [start.clean for start in starts])
        self._source = torch.from_numpy(pixels.source).to(device)
        self._scale, self._offset = (torch.from_numpy(one).to(device) for one in (pixels.scale, pixels.offset))
        self.clean = torch.from_numpy(np.stack([start.clean for start in starts]).astype(np.float32)).to(device)
        made = self._values(self.clean)
        if made.shape != self._aim.values.shape or np.abs(made.cpu().numpy() - self._aim.values).max() > _CLOSE:
            raise UsageError(
                "The picture processor makes other numbers of pictures in a batch than of each alone.",
                "Attack one record at a time: --batch-size 1.",
            )

    def _values(self, x: Float[Tensor, "batch height width 3"]) -> Tensor:
        """What the processor makes of the pictures."""
        return (x.flatten(1)[:, self._source] * self._scale + self._offset).flatten(0, 1)

    def losses(self, x: Float[Tensor, "batch height width 3"]) -> Float[Tensor, " batch"]:
        """The loss of each row; the first call is of the clean pictures."""
        return self._aim(self._values(x))

    def slope(self, x: Float[Tensor, "batch height width 3"]) -> tuple[Tensor, Tensor]:
        """Losses, and their gradients with respect to the pictures.

        Raises:
            UsageError: no gradient gets through.
        """
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.losses(x)
            if not losses.requires_grad:
                raise UsageError(
                    "No gradient reaches the picture: something in the model or in an adapter cuts it off.",
                    "Attack the checkpoint in a floating-point type, or leave out that adapter.",
                )
            (slope,) = torch.autograd.grad(losses.sum(), x)
        return losses, slope

    def moved(self, change: Float[Tensor, "height width 3"]) -> Float[Tensor, "batch height width 3"]:
        """The clean pictures with a change, kept within 0 … 255."""
        return torch.clamp(self.clean + change, 0, LEVELS)

    def rounded(self, x: Tensor, before: Tensor, after: Tensor) -> list[Found]:
        """Pictures of 8 bits, with losses that the model's own processor was asked for."""
        pictures = [one.astype(np.uint8) for one in np.rint(x.cpu().numpy())]
        values: Any = self._attack.aim(self._starts, pictures).values
        with torch.no_grad():
            final = self._aim(torch.from_numpy(values).to(x.device))
        losses = zip(before.tolist(), after.tolist(), final.tolist(), strict=True)
        return [Found(picture, *three) for picture, three in zip(pictures, losses, strict=True)]


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Record no gradients of weights until the block ends."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
