"""Safety subspaces: where malicious activations vary more than benign ones, Σ_m u = λ Σ_b u.

``official``   Σ_b + 1e-6·I, A = Σ_b^{-½} Σ_m Σ_b^{-½} = V Λ Vᵀ, U = Σ_b^{-½} V_k with columns scaled to length 1.
               They are not orthogonal, so h − αUUᵀ(h − μ) is no projection; and with fewer benign samples than
               dimensions the first of them lie in the null space of Σ_b, whatever is malicious.
``corrected``  Σ_b shrunk towards (tr Σ_b/d)·I, the pencil (Σ_m, Σ_b) solved as such, and U orthonormal by QR, which
               keeps the span of the first k for every k.
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UsageError
from .choices import Centre, Shrinkage, SubspaceVariant
from .moments import Moments, shrinkage
from .threads import one_thread

_JITTER = 1e-6


@dataclass(frozen=True)
class Subspace:
    """A safety subspace of one layer and modality.

    Attributes:
        basis: [d_model, rank] in float64, columns of length 1, by falling eigenvalue.
        mean: [d_model], the benign mean μ_b.
        eigenvalues: [d_model], all λ, largest first.
        benign, malicious: how many pooled states were seen.
        shrinkage: ρ, the weight of the identity in Σ_b; 0 in ``official``.
    """

    basis: Float[Tensor, "d_model rank"]
    mean: Float[Tensor, " d_model"]
    eigenvalues: Float[Tensor, " d_model"]
    benign: int
    malicious: int
    shrinkage: float

    @one_thread(blas=False)
    def gain(self, alpha: float) -> tuple[float, float]:
        """Smallest and largest eigenvalue of I − αUUᵀ inside the span of U: 1 − α twice if U is orthonormal."""
        squares = torch.linalg.svdvals(self.basis).square()
        return 1 - alpha * float(squares.max()), 1 - alpha * float(squares.min())


@one_thread()
def principal_cosines(first: Float[Tensor, "d_model rank"], second: Float[Tensor, "d_model other"]) -> list[float]:
    """Cosines of the principal angles between two spans, largest first; 1 is a shared direction."""
    angles = scipy.linalg.subspace_angles(first.double().numpy(), second.double().numpy())
    return torch.from_numpy(angles).cos().sort(descending=True).values.tolist()


def require_spread(label: str, count: int) -> None:
    """Refuse a covariance of fewer than two states.

    Raises:
        UsageError: naming the label.
    """
    if count < 2:
        raise UsageError(
            f"A covariance of {label} states needs at least 2 records, and there are {count}.",
            "Give more records in the fit split.",
        )


def require_rank(rank: int, d_model: int) -> None:
    """Refuse more directions than there are dimensions.

    Raises:
        UsageError: naming both.
    """
    if not 1 <= rank <= d_model:
        raise UsageError(
            f"k = {rank} directions were asked for; states have {d_model} dimensions.", f"Choose k from 1 to {d_model}."
        )


@one_thread()
def safety_subspace(
    benign: Moments,
    malicious: Moments,
    rank: int,
    *,
    variant: SubspaceVariant = "corrected",
    centre: Centre = "own",
    rule: Shrinkage = "ledoit-wolf",
    floor: float = 0.0,
) -> Subspace:
    """The first ``rank`` generalised eigenvectors.

    Σ_b is the covariance about the benign mean. Σ_m is one about the malicious mean (``centre="own"``), or
    the mean of (h − μ_b)(h − μ_b)ᵀ (``"benign"``), which adds the shift between the means to what is sought.

    Args:
        floor: directions with λ at or below it are left out; the first always stays.

    Raises:
        UsageError: there are fewer than two states of a label, or fewer dimensions than ``rank``.
    """
    d = len(benign.mean)
    for label, moments in (("benign", benign), ("malicious", malicious)):
        require_spread(label, moments.count)
    require_rank(rank, d)
    sigma_m = malicious.covariance(benign.mean if centre == "benign" else None)
    sigma_b, weight = benign.covariance(), 0.0
    eye = torch.eye(d, dtype=torch.float64)
    if variant == "official":
        values, vectors = _by_inverse_root(sigma_m, sigma_b + _JITTER * eye)
    else:
        weight = max(shrinkage(benign, rule), _JITTER)  # no direction is without variance, only unseen
        scale = sigma_b.trace() / d
        if scale <= 0:
            raise UsageError("The benign states are all the same.", "Give more, and different, benign records.")
        values, vectors = _pencil(sigma_m, (1 - weight) * sigma_b + weight * scale * eye)
    kept = max(1, min(rank, int((values > floor).sum())))
    basis = vectors[:, :kept]
    basis = torch.linalg.qr(basis)[0] if variant == "corrected" else basis / basis.norm(dim=0)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0)
    return Subspace(basis, benign.mean, values, benign.count, malicious.count, weight)


def _pencil(
    sigma_m: Float[Tensor, "d_model d_model"], sigma_b: Float[Tensor, "d_model d_model"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    values, vectors = scipy.linalg.eigh(sigma_m.numpy(), sigma_b.numpy())
    return torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)


def _by_inverse_root(
    sigma_m: Float[Tensor, "d_model d_model"], sigma_b: Float[Tensor, "d_model d_model"]
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "d_model d_model"]]:
    spread, axes = torch.linalg.eigh(sigma_b)
    root = axes @ torch.diag(spread.clamp_min(_JITTER / 2).rsqrt()) @ axes.T
    values, vectors = torch.linalg.eigh(root @ sigma_m @ root)
    return values.flip(0), root @ vectors.flip(1)
