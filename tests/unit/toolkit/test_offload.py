"""Models that one device does not hold: here, most of one lies on disk and comes a module at a time."""

import pytest
import torch
from safetensors.torch import load_file

from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.updates import save_updated, updated
from safetykit.toolkit.model.vlm import VLM

REQUESTS = [Request("what is this ?"), Request("is it dangerous ?")]
REFERENCE = data_path("reference")
SPREAD = {"device_map": "auto", "max_memory": {"cpu": "4MiB"}}


@pytest.fixture(scope="module")
def offloaded(random_checkpoint):
    return VLM.from_pretrained(random_checkpoint, **SPREAD)


def away(vlm):
    return [name for name, one in vlm.model.named_parameters() if one.device.type == "meta"]


def test_most_of_it_lies_on_disk(offloaded, random_vlm):
    assert len(away(offloaded)) > len(list(random_vlm.model.parameters())) / 2
    assert offloaded.loaded and offloaded.device == torch.device("cpu")
    assert offloaded.base.ran.model_dump() == {"device": "cpu", "dtype": "float32", "spread": True}
    assert torch.equal(offloaded.prefill(REQUESTS)[0], random_vlm.prefill(REQUESTS)[0])


def test_fitting_applying_and_answering_are_those_of_the_whole_model(offloaded, random_vlm):
    records = [one for split in ("fit", "calibration") for one in subset(load_records(REFERENCE, [split]), 24)]
    settings = VLMGuard(variant="steer", layers=(2,), rank=1, alpha=4.0, allow_constant_gate=True)
    ours, theirs = settings.fit(offloaded, records), settings.fit(random_vlm, records)
    for one, other in zip(ours.interventions, theirs.interventions, strict=True):
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    with offloaded.applied(ours), random_vlm.applied(theirs):
        assert torch.equal(offloaded.prefill(REQUESTS)[0], random_vlm.prefill(REQUESTS)[0])
        assert offloaded.generate(REQUESTS, 4)[0].token_ids == random_vlm.generate(REQUESTS, 4)[0].token_ids


@pytest.fixture(scope="module")
def update(offloaded):
    name = next(name for name in away(offloaded) if name.endswith("mlp.down_proj.weight"))
    rows, columns = offloaded.model.get_parameter(name).shape
    generator = torch.Generator().manual_seed(0)
    factors = {"up": torch.randn(rows, 2, generator=generator), "down": torch.randn(2, columns, generator=generator)}
    bias = WeightUpdate(name.replace("weight", "bias"), {"value": torch.randn(rows, generator=generator)})
    return [WeightUpdate(name, factors), bias]


def test_weights_on_disk_are_updated_and_come_back(offloaded, random_vlm, update):
    before = offloaded.prefill(REQUESTS)[0]
    with updated(offloaded, update), updated(random_vlm, update):
        found = offloaded.prefill(REQUESTS)[0]
        assert torch.equal(found, random_vlm.prefill(REQUESTS)[0]) and not torch.equal(found, before)
    assert torch.equal(offloaded.prefill(REQUESTS)[0], before)
    assert away(offloaded)


def test_an_updated_checkpoint_is_written_whole(offloaded, random_vlm, update, tmp_path):
    folders = [save_updated(vlm, update[:1], tmp_path / name) for vlm, name in ((offloaded, "a"), (random_vlm, "b"))]
    found, wanted = (load_file(folder / "model.safetensors") for folder in folders)
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_head_is_read_from_where_it_lies(offloaded, random_vlm):
    from safetykit.toolkit.model.second_pass import SecondPass

    assert torch.equal(SecondPass(offloaded).head()[0], SecondPass(random_vlm).head()[0])
