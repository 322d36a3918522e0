"""A fit leaves the same bytes for any number of threads."""

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from safetykit.adapters.registry import methods
from safetykit.adapters.statistics.moments import Moments, shrinkage, top_directions
from safetykit.adapters.statistics.subspaces import safety_subspace
from safetykit.adapters.statistics.threads import one_thread
from safetykit.toolkit.commands.fit_one import fit_with
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import Workbench

GIVEN = {"vlm-guard": {"gate": "whitened"}, "care": {}, "sasa": {"safety_layer": 2, "fused_layer": 5}, "one-pass": {}}
GIVEN |= {"nullsteer": {"towards": "harmful", "variant": "low-rank"}, "refusal-direction": {}, "hidden-detect": {}}
GIVEN |= {"leace": {}, "cast": {"allow_constant_gate": True}}
GIVEN["streaming-guard"] = {"tokens": 8, "rounds": 1}


@pytest.fixture(scope="module")
def vlm():
    return VLM.from_pretrained("reference:mild")


@pytest.fixture(scope="module")
def records():
    found = {}
    for record in load_records("reference", ("fit", "calibration")):
        found.setdefault((record.split, record.carrier, record.label), []).append(record)
    return [record for members in found.values() for record in members[:: len(members) // 4][:4]]


@pytest.mark.slow
@pytest.mark.parametrize("method", GIVEN)
def test_adapters_are_the_same_bytes_for_one_two_and_four_threads(vlm, records, method, tmp_path):
    before, found = torch.get_num_threads(), []
    bench = Workbench(vlm, records, refusal="no .")
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with threadpool_limits(limits=threads):
                folder = fit_with(methods()[method], bench, GIVEN[method]).save(tmp_path / str(threads))
            found.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
    finally:
        torch.set_num_threads(before)
    assert {"adapter.safetensors", "manifest.json"} <= found[0].keys()
    assert found[1] == found[0] and found[2] == found[0]


def test_one_thread_holds_for_torch_and_blas_and_is_undone():
    before, pools = torch.get_num_threads(), threadpool_info()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
        assert torch.get_num_threads() == 3
        with pytest.raises(ValueError), one_thread(blas=False):
            raise ValueError
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert [pool["num_threads"] for pool in threadpool_info()] == [pool["num_threads"] for pool in pools]


@pytest.fixture
def moments():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(2):
        one = Moments(200)
        one.update(torch.randn(300, 200, generator=generator))
        found.append(one)
    return found


@pytest.mark.parametrize("variant", ["official", "corrected"])
def test_factorisations_are_the_same_bytes_for_any_number_of_threads(moments, variant):
    def bases():
        subspace = safety_subspace(*moments, 5, variant=variant)
        directions = top_directions(moments[0].second_moment(), 3, moments[0].mean)
        rate = shrinkage(moments[0], "ledoit-wolf")
        return subspace.basis, subspace.eigenvalues, *directions, torch.tensor(rate, dtype=torch.float64)

    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(bases())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
