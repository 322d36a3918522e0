"""Where a detector reads: the search finds the planted place, at the cost of a part of the records."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_source import WIDTH, PlantedSource, examples, features

from safetykit.adapters.artifact.manifest import BaseInfo
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.statistics.detector_report import Detector
from safetykit.adapters.statistics.probe import Metric, fit_probe
from safetykit.adapters.statistics.rows import Rows
from safetykit.adapters.statistics.search import LEAST, Grid, Search, part_of


@pytest.fixture(scope="module")
def source() -> PlantedSource:
    return PlantedSource()


class Valley(PlantedSource):
    """A deep decoder in which harm is the clearer, the nearer a pair lies to (11, 22)."""

    base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=32, d_model=WIDTH)
    best = (11, 22)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = 0  # run for pairs
        self.records = 0

    def branch_states(self, records, places):
        pairs = [place for place in places if isinstance(place, tuple)]
        self.blocks += len(records) * sum(31 - safety for safety, _ in pairs)
        self.records += len(records)
        harm = torch.tensor([1.0 if record.label == "harmful" else 0.0 for record in records])
        generator = torch.Generator().manual_seed(len(records))
        for place in places:
            assert not isinstance(place, tuple) or place[0] < place[1] < 32
        noise = torch.randn(len(records), WIDTH, generator=generator)
        far = {pair: abs(pair[0] - self.best[0]) + abs(pair[1] - self.best[1]) for pair in pairs}
        yield list(records), {place: noise + (harm * (3 - 0.05 * far.get(place, 40)))[:, None] / 4 for place in places}


def test_any_pair_of_a_deep_decoder_can_be_chosen_at_the_cost_of_a_part():
    source = Valley()
    records = [replace(record, category="") for record in examples(1000)]
    settings = SASA()
    found = Search(Detector(Metric.of("hidden"), 0.02), source, records, settings.compared).run(settings.places(32))
    assert all(abs(layer - planted) <= 1 for layer, planted in zip(found.place, Valley.best, strict=True))
    assert found.part == {"fit": 120, "calibration": 120} and found.features is None
    assert len(found.rows) == len({(row["safety"], row["fused"]) for row in found.rows}) < 45
    assert source.blocks / 32 + source.records < 25 * LEAST  # forward passes of single records that the choice took


def test_grids_of_shallow_decoders_are_full_and_those_of_deep_ones_reach_every_layer():
    assert len(Grid(SASA().places(6)).coarse()) == 15
    assert SASA(fused_layer=15).places(32) == [(safety, 15) for safety in range(15)]
    for settings in (SASA(), SASA(fused_layer=30), SASA(safety_layer=1)):
        grid = Grid(settings.places(32))
        reached = set(grid.coarse())
        assert 0 < len(reached) <= 10
        for step in grid.finer():
            reached |= {near for place in reached for near in grid.around(place, step)}
        assert reached == set(settings.places(32))
    assert len(Grid(OnePassProbe().places(32)).coarse()) == 32  # states of the normal pass cost nothing more


def test_the_part_keeps_carriers_and_labels_and_is_everything_where_records_or_layers_are_few():
    many = examples(1000)
    part = part_of(many, 0, 32)
    assert len(part) == LEAST and part == part_of(many[::-1], 0, 32) != part_of(many, 1, 32)
    kinds = [(record.split, record.carrier, record.label) for record in part]
    assert {kinds.count(kind) for kind in set(kinds)} == {LEAST // 8}
    assert len(part_of(examples(60), 0, 32)) == 240 == len(examples(60))
    assert len(part_of(many, 0, 12)) == len(many)


def test_states_lie_in_a_file_and_parts_of_them_are_views(source):
    part = features(source)
    half = part.where(label="harmful").take(np.arange(5))
    assert half.states is part.states
    assert np.array_equal(half.rows((1, 2)).all(), part.rows((1, 2)).all()[part.harmful][:5])


def test_rows_are_the_same_in_blocks_and_at_once(monkeypatch):
    values = np.random.default_rng(0).normal(3, 2, (100, 7)).astype(np.float32)
    index = np.arange(3, 90, 2)
    held = Rows(values, index)
    monkeypatch.setattr("safetykit.adapters.statistics.rows._HELD", 0)
    monkeypatch.setattr("safetykit.adapters.statistics.rows._BLOCK", 8 * 7 * 6)
    read = Rows(values, index)
    assert len(list(read.blocks())) == 8 and len(list(held.blocks())) == 1
    weight, mean = np.arange(7.0), held.mean()
    assert np.allclose(read @ weight, held @ weight, rtol=1e-12) and np.array_equal(read.all(), held.all())
    assert np.allclose(read.mean(), mean, rtol=1e-12)
    assert np.allclose(read.variance(mean), held.all().var(0), rtol=1e-12)


def test_a_probe_of_states_in_blocks_is_that_of_states_in_memory(source, monkeypatch):
    part = features(source)
    given = [part.harmful, part.groups, Metric.of("hidden")]
    held = fit_probe(part.rows((1, 2)), *given)
    monkeypatch.setattr("safetykit.adapters.statistics.rows._HELD", 0)
    monkeypatch.setattr("safetykit.adapters.statistics.rows._BLOCK", 8 * WIDTH * 50)
    read = fit_probe(part.rows((1, 2)), *given)
    assert read.strength == held.strength
    assert np.allclose(read.weight, held.weight, rtol=1e-4, atol=1e-6)
