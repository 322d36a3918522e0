"""The training loop: accelerate for device and precision; everything random depends on the step alone.

The passes of a step (``accumulate``) are dealt out to the processes of a job. Their gradients are added in the order of
the passes on every process, so that the weights are those of a single one, bit by bit.

What a run leaves behind, as the adapter's attachment ``training`` (all lists have one entry per optimizer step)::

    {"steps": [1, 2, …], "terms": {"loss": […], "guide": […], "request": […], "opening": […], "answer": […]},
     "lr": […], "seconds": 12.3, "device": "cpu", "precision": "float32", "parameters": 24832,
     "targets": ["model.multi_modal_projector.linear_1.weight", …]}

``terms`` are unweighted, ``loss`` is their weighted sum; a term of weight 0 is left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters.tga.settings import TGA
from ..distributed.dealing import dealt
from ..distributed.world import world
from ..progress import Progress
from .batches import Batches, TwinBatch
from .checkpoint import Checkpoint
from .forward import PictureFeatures, run
from .loss import answer_loss, guide_loss, opening_loss, pooled, request_loss, widened
from .targets import Trained

if TYPE_CHECKING:
    from ..model.vlm import VLM

CHECKPOINT_EVERY = 50
_CLIP = 1.0  # norm of the gradient
_WARM_UP = 0.05  # of the steps


@dataclass(frozen=True)
class TextStates:
    """Targets per captioned picture and layer, from text-only passes of the base.

    Attributes:
        caption, retrieved: mean states of a picture's caption and of the text retrieved for it [pictures, d_model].
        centre: means of picture states and of caption states over all pictures, before training.
    """

    caption: dict[int, Float[Tensor, "pictures d_model"]]
    retrieved: dict[int, Float[Tensor, "pictures d_model"]]
    centre: dict[int, tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]]


class Losses:
    """The terms of the loss for one batch.

    Args:
        trained: what is trained; text twins are answered without it.
    """

    def __init__(self, vlm: VLM, settings: TGA, features: PictureFeatures, texts: TextStates, trained: Trained) -> None:
        self._vlm, self._settings, self._features, self._texts, self._trained = vlm, settings, features, texts, trained
        self._layers = settings.layers_of(len(vlm.parts.layers))

    def __call__(self, batch: TwinBatch) -> dict[str, Float[Tensor, ""]]:
        """Unweighted terms by name, those of positive weight only."""
        settings, terms = self._settings, {}
        answers = batch.answer.sum(1)
        tail = int(answers.max()) + 1
        made = run(self._vlm, batch.pictured, self._layers, self._features.given(batch.items, batch.pictured), tail)
        if settings.guide_weight:
            terms["guide"] = sum(self._guide(made.states[layer], batch, layer) for layer in self._layers)
        if settings.request_weight or settings.opening_weight:
            with torch.no_grad(), self._trained.base():
                twin = run(self._vlm, batch.twin, self._layers, tail=tail)
            if settings.request_weight:
                mask = batch.request.to(self._vlm.device)
                width = mask.shape[1]
                shares = [
                    request_loss(widened(made.states[layer][:, -width:]), widened(twin.states[layer][:, -width:]), mask)
                    for layer in self._layers
                ]
                terms["request"] = torch.stack(shares).mean()
            if settings.opening_weight:
                rows, at = torch.arange(len(answers)), tail - 1 - answers  # what gives the first answer token
                terms["opening"] = opening_loss(widened(made.logits[rows, at]), widened(twin.logits[rows, at]))
        if settings.ce_weight:
            ids = torch.from_numpy(batch.pictured.input_ids)[:, -tail:].to(self._vlm.device)
            answer = batch.answer[:, -tail:].to(self._vlm.device)
            terms["answer"] = answer_loss(widened(made.logits), ids, answer)
        return terms

    def weighted(self, terms: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The loss."""
        settings = self._settings
        weights = {
            "guide": settings.guide_weight,
            "request": settings.request_weight,
            "opening": settings.opening_weight,
            "answer": settings.ce_weight,
        }
        return sum(weights[name] * term for name, term in terms.items())

    def _guide(self, states: Tensor, batch: TwinBatch, layer: int) -> Tensor:
        items = list(batch.items)
        texts, device = self._texts, self._vlm.device
        image = pooled(states, torch.from_numpy(batch.pictured.vision_mask).to(device))
        centre = tuple(side.to(device) for side in texts.centre[layer]) if self._settings.centred else None
        retrieved = texts.retrieved[layer][items].to(device) if self._settings.retrieval else None
        return guide_loss(image, texts.caption[layer][items].to(device), retrieved, centre)


def train(
    vlm: VLM,
    settings: TGA,
    batches: Batches,
    losses: Losses,
    trained: Trained,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train the targets in place.

    Args:
        checkpoint: of this run; its folder is removed by the caller, once the result is stored.

    Returns:
        The attachment ``training``.
    """
    torch.set_flush_denormal(True)  # states that die out would make a CPU slower by far
    accelerator = _accelerator(vlm)
    parameters = list(trained.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=0.0)
    checkpoint = checkpoint or Checkpoint(None, {})
    done, curve = checkpoint.restore(trained.parameters, optimizer)
    spent, start = curve[-1]["seconds"] if curve else 0.0, time.monotonic()
    optimizer = accelerator.prepare(optimizer)
    sent = world().size > 1

    def passed(part: int) -> tuple[list[Tensor | None], dict[str, float]]:
        """Gradients and terms of one pass."""
        with accelerator.autocast():
            terms = losses(batches(part))
            loss = losses.weighted(terms)
        accelerator.backward(loss / settings.accumulate)
        gradients = [parameter.grad for parameter in parameters]
        optimizer.zero_grad()
        values = {name: term.item() for name, term in {"loss": loss, **terms}.items()}
        return [one.cpu() if sent and one is not None else one for one in gradients], values

    for step in range(done, settings.steps):
        rate = settings.rate * schedule(step, settings.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        first, found = step * settings.accumulate, []
        totals: list[Tensor | None] = [None] * len(parameters)
        for _, (gradients, values) in dealt(range(first, first + settings.accumulate), passed):
            found.append(values)
            totals = [_sum(total, gradient) for total, gradient in zip(totals, gradients, strict=True)]
        for parameter, total in zip(parameters, totals, strict=True):
            parameter.grad = None if total is None else total.to(parameter.device)
        accelerator.clip_grad_norm_(parameters, _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        curve.append({**_mean(found), "lr": rate, "seconds": spent + time.monotonic() - start})
        if progress:
            progress(step + 1, settings.steps)
        if (step + 1) % CHECKPOINT_EVERY == 0 and step + 1 < settings.steps:
            checkpoint.save(step + 1, trained.parameters, optimizer.optimizer, curve)
    names = [name for name in curve[0] if name not in ("lr", "seconds")]
    return {
        "steps": list(range(1, settings.steps + 1)),
        "terms": {name: [row[name] for row in curve] for name in names},
        "lr": [row["lr"] for row in curve],
        "seconds": round(curve[-1]["seconds"], 1),
        "device": accelerator.device.type,
        "precision": {"no": "float32", "bf16": "bfloat16"}[accelerator.mixed_precision],
        "parameters": sum(item.numel() for item in parameters),
        "targets": sorted(trained.parameters),
    }


def schedule(step: int, steps: int) -> float:
    """Share of the peak rate at a step (from 0): linear warm-up over a twentieth of the steps, then linear decay."""
    warm = max(1, round(_WARM_UP * steps))
    return min(1.0, (step + 1) / warm) * (1 - step / steps)


def _accelerator(vlm: VLM) -> Any:
    from accelerate import Accelerator

    cpu = vlm.device.type == "cpu"
    half = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return Accelerator(cpu=cpu, mixed_precision="bf16" if half else "no")


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return total if more is None else more if total is None else total + more


def _mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    rows = list(rows)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
