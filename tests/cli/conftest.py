"""Adapters for the random checkpoint, made without a fit."""

import pytest
import torch


@pytest.fixture
def make_adapter(random_vlm):
    from safetykit.adapters import Adapter, Intervention, Site
    from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo

    def make(site="decoder.layers.2", amount=5.0):
        tensors = {"basis": torch.eye(128)[:, :1], "mean": torch.full((128,), amount), "beta": torch.tensor(1.0)}
        info = AdapterInfo(
            method="test",
            variant="test",
            sign_convention="none",
            hyperparameters={},
            seed=None,
            base=random_vlm.base,
            data=DataInfo(sha256="0" * 64, counts={}),
            versions={},
        )
        return Adapter(info, (Intervention("SubspaceProjection", Site.parse(site), "all", "both", tensors),))

    return make


@pytest.fixture
def adapter_folder(make_adapter, tmp_path):
    return make_adapter().save(tmp_path / "adapter")
