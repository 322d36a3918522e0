"""Stage 3: the vision encoder learns to tell things apart on real pictures, as a classifier.

Trained from scratch through a frozen language model the tower learns nothing; as a classifier of its mean patch
token it does. Emoji and words drawn as pictures are mixed. The two linear heads (thing, kind) are thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel

from .atlas import SEEN_FONTS, SEEN_SETS, shown, tiles
from .loop import Optimizer
from .world import things


def pictures(atlases: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """All pictures of the atlases: pixels uint8 [n, 3, 48, 48], thing index [n], position of the atlas [n]."""
    pixels, indices, sources = [], [], []
    for source, atlas in enumerate(atlases):
        chosen = sorted(shown(atlas))
        pixels.append(torch.from_numpy(tiles(atlas)[np.asarray(chosen)]).permute(0, 3, 1, 2))
        indices += chosen
        sources += [source] * len(chosen)
    return torch.cat(pixels), torch.tensor(indices), torch.tensor(sources)


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [n, 3, 48, 48] to what the processor makes of it: float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def augment(pixels: Tensor, typographic: Tensor, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Random shift, scale, tilt, mirror (not for words), tint and noise. `pixels` as `normalise` returns them."""
    n = len(pixels)

    # Words are read at the limit of the resolution, so they are moved and bent less.
    gentle = torch.where(typographic, 0.35 * strength, strength)

    def draw(*shape: int) -> Tensor:
        noise = torch.rand(n, *shape, generator=generator) * 2 - 1
        return noise * gentle.view(n, *[1] * len(shape))

    angle, scale = draw() * 0.2, 1.0 + draw() * 0.2
    mirror = torch.where((torch.rand(n, generator=generator) < 0.5) & ~typographic, -1.0, 1.0)
    turn = torch.stack([torch.cos(angle) * mirror, -torch.sin(angle), torch.sin(angle) * mirror, torch.cos(angle)], -1)
    affine = torch.cat([turn.view(n, 2, 2) * scale.view(n, 1, 1), (draw(2) * 0.15).unsqueeze(-1)], -1)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    # Outside the tile lies white paper, so sample the distance from white, which is zero there.
    moved = 1 - F.grid_sample(1 - pixels, grid, align_corners=False)
    brightness = 1 + draw(3, 1, 1) * 0.15
    noise = torch.randn(pixels.shape, generator=generator) * 0.04 * strength
    return ((moved + 1) * brightness - 1 + noise).clamp(-1, 1)


def accuracy(tower: CLIPVisionModel, head: nn.Linear, atlases: tuple[str, ...]) -> dict[str, float]:
    """Share of an atlas's pictures, unaugmented, whose thing is recognised."""
    tower.eval()
    figures = {}
    with torch.no_grad():
        for atlas in atlases:
            pixels, labels, _ = pictures((atlas,))
            guess = head(pool(tower, normalise(pixels))).argmax(-1)
            figures[atlas] = round((guess == labels).float().mean().item(), 4)
    tower.train()
    return figures


def pool(tower: CLIPVisionModel, pixel_values: Tensor) -> Tensor:
    """Mean patch token [n, d], scaled to unit variance; the class token is left out, as LLaVA leaves it out."""
    patches = tower(pixel_values).last_hidden_state[:, 1:]
    return F.layer_norm(patches.mean(1), patches.shape[-1:])


def whiten(tower: CLIPVisionModel, pixels: Tensor) -> None:
    """Start the patch embedding as the whitened principal components of real patches, and positions at their scale.

    From the usual small random start the first thousand steps go into finding this basis.
    """
    embeddings = tower.embeddings if hasattr(tower, "embeddings") else tower.vision_model.embeddings
    weight = embeddings.patch_embedding.weight
    size = weight.shape[-1]
    patches = F.unfold(normalise(pixels[::2]), size, stride=size).transpose(1, 2).flatten(0, 1)
    patches = patches[patches.std(-1) > 0.02]
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    width = min(len(weight), len(values))
    basis = vectors[:, -width:] / (values[-width:] + 0.02).sqrt()
    with torch.no_grad():
        weight[:width] = basis.T.view(width, *weight.shape[1:])
        embeddings.position_embedding.weight.normal_(std=0.5)


def train_encoder(
    tower: CLIPVisionModel, steps: int, seed: int, log: Callable[..., None], batch: int = 128
) -> dict[str, float]:
    """Train the tower in place; returns its accuracy per atlas (things named from unaugmented pictures)."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    atlases = SEEN_SETS + SEEN_FONTS
    pixels, labels, sources = pictures(atlases)
    typographic = sources >= len(SEEN_SETS)
    kinds = sorted({t.kind for t in things()})
    kind_of = torch.tensor([kinds.index(t.kind) for t in things()])
    width = tower.config.hidden_size
    heads = nn.ModuleList([nn.Linear(width, len(things())), nn.Linear(width, len(kinds))])
    optimizers = [Optimizer(tower, 2e-3, 1e-3, steps, warmup=80), Optimizer(heads, 2e-3, 2e-3, steps, warmup=80)]
    whiten(tower, pixels)
    tower.train()
    start = time.time()
    for step in range(steps):
        rows = torch.randint(len(labels), (batch,), generator=generator)
        seen = augment(normalise(pixels[rows]), typographic[rows], generator)
        features = pool(tower, seen)
        loss = F.cross_entropy(heads[0](features), labels[rows], label_smoothing=0.05)
        loss = loss + 0.3 * F.cross_entropy(heads[1](features), kind_of[labels[rows]])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            log(step=step, loss=round(loss.item(), 4), seconds=round(time.time() - start))
    figures = accuracy(tower, heads[0], (*SEEN_SETS, "emojione", *SEEN_FONTS, "type-hand"))
    log(**figures)
    return figures
