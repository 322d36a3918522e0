"""Adapters of affine interventions with random parameters: what can be folded."""

from __future__ import annotations

import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import AdapterInfo, BaseInfo, DataInfo
from safetykit.adapters.artifact.sites import Phase, Scope, Site


def projection(
    site: str,
    width: int,
    *,
    rank: int = 6,
    strength: float = 1.0,
    orthonormal: bool = True,
    seed: int = 0,
    centred: bool = True,
    scope: Scope = "all",
    phase: Phase = "both",
) -> Intervention:
    """h − strength · V Vᵀ(h − μ) with random V, of unit columns, and μ, which is 0 unless ``centred``."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(width, rank, generator=generator)
    basis = torch.linalg.qr(basis)[0] if orthonormal else basis / basis.norm(dim=0)
    mean = torch.randn(width, generator=generator) * centred
    tensors = {"basis": basis.contiguous(), "mean": mean, "beta": torch.tensor(strength)}
    return Intervention("SubspaceProjection", Site.parse(site), scope, phase, tensors)


def adapter_of(base: BaseInfo, *interventions: Intervention) -> Adapter:
    """An adapter of these interventions for a model."""
    info = AdapterInfo(
        method="test",
        variant="affine",
        sign_convention="none",
        hyperparameters={"strength": 1.0},
        seed=0,
        base=base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )
    return Adapter(info, interventions)
