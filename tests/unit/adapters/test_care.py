"""CARE finds the planted subspaces of both modalities, builds every fusion, and says what it lacks."""

from dataclasses import replace

import pytest
import torch
from planted_tokens import PlantedTokens, token_records

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.care.statistics import TokenChoice, collect, roles
from safetykit.adapters.errors import UsageError
from safetykit.adapters.ops.affine import AffineMap
from safetykit.adapters.statistics.subspaces import principal_cosines


@pytest.fixture(scope="module")
def model():
    return PlantedTokens()


@pytest.fixture(scope="module")
def data():
    return token_records()


def care(**options):
    """The kernel chooses: pooled over all tokens, what few of them carry is diluted."""
    return CARE(**{"layers": (1,), "rank": 2, "selection": "kernel", **options})


def bases(adapter):
    (item,) = adapter.interventions
    return {"visual": item.tensors["visual_basis"], "textual": item.tensors["textual_basis"]}


def worst_angle(first, second):
    return torch.tensor(principal_cosines(first, second)).clamp(max=1).min().acos().rad2deg()


@pytest.mark.parametrize("contrast", ["label", "carrier"])
def test_the_planted_subspace_of_each_modality_is_recovered(model, data, contrast):
    found = bases(care(contrast=contrast).fit(model, data))
    for modality, truth in model.truth.items():
        assert worst_angle(found[modality], truth) < 6


def test_pooling_every_token_dilutes_what_few_of_them_carry(model, data):
    """One visual token of eight tells: pooled with the rest, its variance falls by 64 against theirs by 8."""
    chosen, everything = (
        care(selection=how).fit(model, data).attachments["care"]["layers"]["1"] for how in ("kernel", "none")
    )
    assert chosen["visual"]["eigenvalues"][0] > 3 * everything["visual"]["eigenvalues"][0]


def test_no_selection_needs_one_pass_and_a_kernel_a_bounded_one_before_it():
    model, data = PlantedTokens(), token_records(600)
    care(contrast="label", selection="none").fit(model, data)
    assert model.passes == [2400]
    care(contrast="label").fit(model, data)
    assert model.passes == [2400, 512, 2400]


def test_a_fit_depends_neither_on_the_order_of_records_nor_on_chance(model, data):
    first, again, backwards = (care().fit(model, one) for one in (data, data, data[::-1]))
    for name, tensor in first.interventions[0].tensors.items():
        assert torch.equal(tensor, again.interventions[0].tensors[name])
        assert torch.allclose(tensor, backwards.interventions[0].tensors[name], atol=1e-4)
    assert first.info == again.info == backwards.info


def test_official_reads_block_outputs_and_acts_at_mlp_outputs(model, data):
    adapter = CARE(variant="official", layers=(2,), rank=2).fit(model, data)
    entry = adapter.attachments["care"]["layers"]["2"]
    assert adapter.interventions[0].site == Site("mlp", 2)
    assert (entry["site"], entry["statistics_site"]) == ("decoder.layers.2.mlp", "decoder.layers.2")
    assert entry["visual"]["shrinkage"] == 0


@pytest.mark.parametrize("site", ["mlp", "attn", "block"])
def test_corrected_fits_and_acts_at_one_site(model, data, site):
    adapter = CARE(layers=(2,), rank=2, site=site).fit(model, data)
    entry = adapter.attachments["care"]["layers"]["2"]
    assert entry["site"] == entry["statistics_site"] == str(adapter.interventions[0].site)
    assert adapter.interventions[0].site == Site(site, 2)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        ("adaptive", [("AdaptiveProjection", "all")]),
        ("parallel", [("ParallelProjection", "all")]),
        ("sequential", [("SubspaceProjection", "all"), ("SubspaceProjection", "all")]),
        ("masked", [("SubspaceProjection", "vision"), ("SubspaceProjection", "text")]),
        ("injection", [("BenignInjection", "all"), ("BenignInjection", "all")]),
    ],
)
def test_every_fusion_has_its_ops_at_every_token_in_both_phases(model, data, fusion, expected):
    adapter = CARE(fusion=fusion, layers=(1, 3), rank=2).fit(model, data)
    found = [(item.op, item.scope) for item in adapter.interventions]
    assert found == 2 * expected
    assert {item.phase for item in adapter.interventions} == {"both"}


def run(adapter, hidden, scope):
    for item in adapter.interventions:
        hidden, *_ = item.make_op()(hidden, scope[item.scope], **item.tensors)
    return hidden


def scopes(vision):
    mask = vision.float()[..., None]
    return {"all": torch.ones_like(mask), "vision": mask, "text": 1 - mask}


def test_alpha_one_removes_the_textual_component_last(model, data):
    adapter = CARE(fusion="sequential", layers=(1,), rank=2, alpha=1.0).fit(model, data)
    hidden = 10 * torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))
    after = run(adapter, hidden, scopes(torch.zeros(2, 6, dtype=torch.bool)))
    last = adapter.interventions[-1].tensors
    assert ((after - last["mean"]) @ last["basis"]).abs().max() < 1e-4
    assert ((hidden - last["mean"]) @ last["basis"]).abs().max() > 1


def test_masked_fusion_leaves_the_other_modality_bit_identical(model, data):
    adapter = CARE(fusion="masked", layers=(1,), rank=2).fit(model, data)
    hidden = 10 * torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))
    vision = torch.tensor([[True, True, False, False, False, False]]).expand(2, -1)
    for name, own in (("vision", vision), ("text", ~vision)):
        (item,) = (item for item in adapter.interventions if item.scope == name)
        after = run(replace(adapter, interventions=(item,)), hidden, scopes(vision))
        assert torch.equal(after[~own], hidden[~own])
        assert (after[own] - hidden[own]).abs().max() > 0.1


def test_sequential_folds_into_one_affine_map(model, data):
    adapter = CARE(fusion="sequential", layers=(1,), rank=2, alpha=0.7).fit(model, data)
    hidden = 10 * torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))
    first, second = (item.make_op().affine(**item.tensors) for item in adapter.interventions)
    assert isinstance(first, AffineMap)
    after = run(adapter, hidden, scopes(torch.zeros(2, 6, dtype=torch.bool)))
    assert torch.allclose(first.then(second)(hidden), after, atol=1e-4)


@pytest.mark.parametrize("modality", ["visual", "textual"])
def test_one_modality_alone_is_a_plain_projection(model, data, modality):
    (item,) = care(modalities=modality).fit(model, data).interventions
    assert (item.op, item.scope) == ("SubspaceProjection", "all")
    assert worst_angle(item.tensors["basis"], model.truth[modality]) < 6


def test_the_modalities_may_act_in_different_layers(model, data):
    adapter = CARE(layers=(0, 1), textual_layers=(1, 2), rank=2).fit(model, data)
    found = [(item.site.layer, item.op) for item in adapter.interventions]
    assert found == [(0, "SubspaceProjection"), (1, "AdaptiveProjection"), (2, "SubspaceProjection")]
    assert set(adapter.attachments["care"]["layers"]["2"]) == {"site", "statistics_site", "textual"}


def test_the_attachment_shows_spectra_counts_overlap_and_gain(model, data):
    entry = care(alpha=3.0).fit(model, data).attachments["care"]["layers"]["1"]
    assert len(entry["visual"]["eigenvalues"]) == 24
    assert entry["visual"]["eigenvalues"] == sorted(entry["visual"]["eigenvalues"], reverse=True)
    assert (entry["visual"]["benign"], entry["textual"]["benign"]) == (120, 240)
    assert (entry["visual"]["malicious"], entry["textual"]["malicious"]) == (120, 120)
    assert entry["visual"]["gain"] == pytest.approx([-2.0, -2.0])
    assert len(entry["overlap"]) == 2 and max(entry["overlap"]) < 0.3, "the planted subspaces are orthogonal"


def test_what_the_model_does_decides_the_roles_under_the_contrast_of_behaviour(data):
    harmful = [record.id for record in data if record.label == "harmful"]
    outcomes = dict.fromkeys(harmful, "other") | {harmful[0]: "answered", harmful[1]: "refused"}
    found = roles(data, "behaviour", outcomes)
    assert [record.id for record in found["malicious"]] == [harmful[0]]
    assert [record.id for record in found["benign"] if record.label == "harmful"] == [harmful[1]]
    assert len(found["benign"]) == len(harmful) + 1


def test_only_the_fit_split_is_read_and_described(model, data):
    other = [replace(record, id=f"x{record.id}", split="calibration") for record in data]
    plain, more = (CARE(layers=(1,), rank=2).fit(model, records) for records in (data, [*other, *data]))
    assert plain.info == more.info
    assert plain.info.data.counts == {"fit/image/harmful": 120, "fit/image/harmless": 120, "fit/text/harmless": 120}
    assert torch.equal(bases(plain)["visual"], bases(more)["visual"])


def test_statistics_of_two_halves_add_up_to_those_of_the_whole(model, data):
    site, tokens = Site("mlp", 1), TokenChoice("none")

    def part(records):
        return collect(model, roles(records, "label"), [site], tokens).moments

    whole, first, second = part(data), part(data[:240]), part(data[240:])
    for key, moments in whole.items():
        first[key].merge(second[key])
        assert first[key].count == moments.count
        assert torch.allclose(first[key].scatter, moments.scatter, rtol=1e-8)
        assert first[key].quartic == pytest.approx(moments.quartic)


@pytest.mark.parametrize(
    ("keep", "options", "message"),
    [
        (lambda r: r.label == "harmless", {}, "fit split holds no harmful record"),
        (lambda r: r.label == "harmful", {}, "fit split holds no harmless record"),
        (lambda r: r.carrier == "text", {}, "no harmful record with a picture. Choose --contrast label"),
        (
            lambda r: r.carrier == "text",
            {"contrast": "label"},
            "no malicious record with a picture.*--modalities textual",
        ),
        (
            lambda r: r.label == "harmful" or r.carrier == "text",
            {"contrast": "label"},
            "no benign record with a picture.*--modalities textual",
        ),
        (lambda r: r.label == "harmless" or r.id == "harmful-image0", {}, "malicious states needs at least 2 records"),
        (lambda r: True, {"rank": 25}, "k = 25 directions were asked for; states have 24 dimensions"),
        (lambda r: True, {"layers": (4,)}, "decoder has 4 layers"),
        (lambda r: True, {"layers": ()}, "layers names nothing"),
        (lambda r: True, {"contrast": "behaviour"}, "which harmful records the model answers"),
    ],
)
def test_what_is_missing_is_named(model, data, keep, options, message):
    with pytest.raises(UsageError, match=message):
        CARE(**{"layers": (1,), "rank": 2, **options}).fit(model, [record for record in data if keep(record)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank cannot be 0"),
        ({"variant": "official", "site": "block"}, "site does nothing with variant official"),
        ({"fusion": "masked", "scope": "last"}, "scope does nothing with fusion masked"),
        ({"selection": "kernel", "visual_share": 0.0}, "visual_share cannot be 0"),
        ({"selection": "kernel", "textual_share": 1.5}, "textual_share cannot be 1.5"),
    ],
)
def test_senseless_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        CARE(**options)


def test_a_model_that_answers_nothing_has_no_malicious_record(model, data):
    outcomes = {record.id: "refused" for record in data if record.label == "harmful"}
    with pytest.raises(UsageError, match="no harmful record that the model answers"):
        CARE(layers=(1,), contrast="behaviour").fit(model, data, outcomes=outcomes)
