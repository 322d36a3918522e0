"""Alignment without training [ours]: an affine map after the projector, by ridge regression onto the captions.

The decoder's answer to the projector is taken as linear: with p_n the mean projected token of picture n and I_n its
mean state at the aligned layer, I_n − Ī ≈ G (p_n − p̄), G by ridge regression over the captioned pictures. What the
projected picture would have to become for its centred state to be its caption's is then, per picture::

    t_n = p_n + G⁺ [ s (C_n − C̄) − (I_n − Ī) ],   s = ‖I − Ī‖ / ‖C − C̄‖

(s keeps the spread of the picture's states: captions are compared by direction, as the guide does.) The map
p ↦ p + D (p − p̄) that comes nearest, with λ pulling D towards zero, is::

    D = argmin Σ_n ‖p_n + D(p_n − p̄) − t_n‖² + λ‖D‖²

so λ → ∞ leaves the base as it is. λ is chosen by generalised cross-validation (Golub, Heath, Wahba 1979). The map goes
into the projector's last linear layer, W ← (1 + D) W and b ← b + D(b − p̄): no op at run time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

DAMPING = 1.0  # of the mean square of the response's singular values
_GRID = 41  # λ from 1e-4 to 1e6 times the mean eigenvalue


@dataclass(frozen=True)
class Ridge:
    """A fitted regression Y ≈ X D'.

    Attributes:
        weight: D' [inputs, outputs].
        penalty: λ.
        error: mean squared error by generalised cross-validation, as a share of the mean square of Y.
    """

    weight: Float[Tensor, "inputs outputs"]
    penalty: float
    error: float


def ridge(
    x: Float[Tensor, "samples inputs"], y: Float[Tensor, "samples outputs"], penalty: float | None = None
) -> Ridge:
    """argmin ‖X D − Y‖² + λ‖D‖², in float64; no intercept.

    Args:
        penalty: λ; None chooses it by generalised cross-validation.
    """
    x, y = x.double(), y.double()
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    square, projected = s.square(), u.T @ y
    outside = y.square().sum() - projected.square().sum()  # what no D reaches
    scale = y.square().sum().clamp_min(1e-300)

    def score(value: float) -> float:
        shrink = square / (square + value) if value else (square > 0).double()
        left = outside + ((1 - shrink)[:, None] * projected).square().sum()
        freedom = len(x) - shrink.sum()
        return float(len(x) * left / scale * len(x) / freedom.clamp_min(1e-9).square())

    if penalty is None:
        grid = (square.mean() * torch.logspace(-4, 6, _GRID, dtype=torch.float64)).tolist()
        penalty = min(grid, key=score)
    inverse = torch.where(s > s.max() * 1e-12, s / (square + penalty), 0.0)
    return Ridge(vt.T @ (inverse[:, None] * projected), penalty, score(penalty))


@dataclass(frozen=True)
class AffineCorrection:
    """p ↦ p + D(p − p̄).

    Attributes:
        map: D [d_model, d_model].
        mean: p̄.
        penalty, error: of the regression.
    """

    map: Float[Tensor, "d_model d_model"]
    mean: Float[Tensor, " d_model"]
    penalty: float
    error: float

    @classmethod
    def fit(
        cls,
        projected: Float[Tensor, "pictures d_model"],
        states: Float[Tensor, "pictures d_model"],
        captions: Float[Tensor, "pictures d_model"],
        penalty: float | None = None,
        damping: float = DAMPING,
    ) -> AffineCorrection:
        """Fit from mean projected tokens, mean picture states and mean caption states at one layer.

        Args:
            penalty: λ; None chooses it by generalised cross-validation.
            damping: of G⁺; little of it moves pictures far along directions that the decoder hardly reads.
        """
        mean = projected.double().mean(0)
        p = projected.double() - mean
        i = states.double() - states.double().mean(0)
        c = captions.double() - captions.double().mean(0)
        response = ridge(p, i)  # p G' ≈ I
        wanted = c * (i.norm() / c.norm().clamp_min(1e-12)) - i
        # δ_n = G⁺ wanted_n, damped where the response is weak: there a state would cost a large change of p.
        step = ridge(response.weight.T, wanted.T, damping * response.weight.square().sum().item() / p.shape[1])
        found = ridge(p, step.weight.T, penalty)
        return cls(found.weight.T, mean, found.penalty, found.error)

    def folded(
        self, weight: Float[Tensor, "d_model inputs"], bias: Float[Tensor, " d_model"] | None
    ) -> tuple[Float[Tensor, "d_model inputs"], Float[Tensor, " d_model"]]:
        """Weight and bias of the last linear layer with the map in it."""
        old = torch.zeros_like(self.mean) if bias is None else bias.double().cpu()
        weight = weight.double().cpu()
        return weight + self.map @ weight, old + self.map @ (old - self.mean)
