"""The probe of several layers: planted truth, one layer as the special case, and what is refused."""

import dataclasses

import pytest
import torch
from planted_source import REFUSAL, PlantedSource, examples

from safetykit.adapters import Adapter, InvalidArtifact, Site, UsageError
from safetykit.adapters.one_pass.settings import OnePassProbe


@pytest.fixture(scope="module")
def source() -> PlantedSource:
    return PlantedSource()


def test_one_layer_of_several_is_the_same_probe_however_it_is_named(source):
    one, other = OnePassProbe(fused_layer=2), OnePassProbe(layers=(2,))
    (first,), (second,) = (probe.fit(source, examples(60), REFUSAL).interventions for probe in (one, other))
    assert second.reads == () and first.site == second.site
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in ("weight", "bias"))


def test_a_probe_of_several_layers_finds_the_direction_in_each_and_beats_one_layer(source, tmp_path):
    adapter = OnePassProbe(layers="1-3").fit(source, examples(), REFUSAL)
    (item,) = Adapter.load(adapter.save(tmp_path / "probe")).interventions
    assert item.site == Site.block(3) and item.reads == (Site.block(1), Site.block(2))
    parts = item.tensors["weight"].reshape(3, -1)
    assert (torch.nn.functional.cosine_similarity(parts, source.direction[None]) > 0.8).all()
    report = adapter.attachments["detector"]
    assert report["place"] == {"safety": None, "fused": 3, "beside": [1, 2]}
    several, *others = [row for row in report["comparison"] if row["detector"] != "unprojected"]
    assert several["detector"] == "multi-layer" and [row["fused"] for row in others] == [1, 2, 3]
    assert all(several["loss"] < row["loss"] and several["recall"] > row["recall"] for row in others)


def test_a_probe_of_several_layers_judges_a_prompt_by_all_of_them(source):
    probe = OnePassProbe(layers=(1, 3)).fit(source, examples(60), REFUSAL).interventions[0]
    early, late = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    risk = probe.make_op()(late, **probe.tensors, earlier=early[:, -1])
    weight, bias = probe.tensors["weight"], probe.tensors["bias"]
    torch.testing.assert_close(risk, early[:, -1] @ weight[:16] + late[:, -1] @ weight[16:] + bias)


@pytest.mark.parametrize(
    ("reads", "site"), [((2, 1), 3), ((1, 1), 3), ((3,), 3), ((3,), 2)], ids=["unordered", "twice", "own", "later"]
)
def test_a_probe_that_reads_what_is_not_before_its_site_is_damaged(source, reads, site):
    (item,) = OnePassProbe(fused_layer=2).fit(source, examples(20), REFUSAL).interventions
    with pytest.raises(InvalidArtifact, match="not outputs of blocks before its site"):
        dataclasses.replace(item, site=Site.block(site), reads=tuple(map(Site.block, reads)))


def test_a_weight_that_does_not_part_among_the_sites_is_damaged(source):
    (item,) = OnePassProbe(fused_layer=3).fit(source, examples(20), REFUSAL).interventions
    with pytest.raises(InvalidArtifact, match="not one of 3 equal parts"):
        dataclasses.replace(item, reads=(Site.block(0), Site.block(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (1, 2), "fused_layer": 1}, "layers and fused_layer both say what is read"),
        ({"layers": (1, 2), "space": "logits"}, "space logits is the metric of one layer's states"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        OnePassProbe(**options)


def test_a_layer_that_the_decoder_lacks_is_refused(source):
    with pytest.raises(UsageError, match="layers.9 does not exist"):
        OnePassProbe(layers=(1, 9)).fit(source, examples(4), REFUSAL)
