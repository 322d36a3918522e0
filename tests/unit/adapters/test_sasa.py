"""SASA's projection, its probe and its fit find what was planted, and say so when they cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_source import DEPTH, KINDS, REFUSAL, WIDTH, PlantedSource, examples, features
from sklearn.linear_model import LogisticRegression

from safetykit.adapters import Adapter, Site, UsageError
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.sasa.sasa import FusedProjection
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.statistics.detector import Features
from safetykit.adapters.statistics.detector_report import FRACTIONS
from safetykit.adapters.statistics.probe import Metric, fit_probe, threshold_at


@pytest.fixture(scope="module")
def source() -> PlantedSource:
    return PlantedSource()


@pytest.fixture(scope="module")
def adapter(source) -> Adapter:
    return SASA().fit(source, examples(), REFUSAL)


def identity_metric() -> Metric:
    return Metric.of("hidden")


# The projection


def test_the_new_state_is_the_projection_of_the_safety_state_onto_the_fused_one():
    generator = torch.Generator().manual_seed(0)
    safety, fused = torch.randn(2, 3, 5, 8, generator=generator)
    moved = FusedProjection().start(safety, fused)
    assert torch.allclose((safety - moved).mul(fused).sum(-1), torch.zeros(3, 5), atol=1e-5)
    cosines = torch.nn.functional.cosine_similarity(moved, fused, dim=-1)
    assert torch.allclose(cosines.abs(), torch.ones(3, 5), atol=1e-6)


def test_alpha_is_finite_for_float16_outliers_whose_squares_overflow():
    fused = torch.ones(1, 2, 8, dtype=torch.float16)
    fused[..., 3] = 6e4
    safety = fused.clone()
    safety[..., 0] = -5.0
    moved = FusedProjection().start(safety, fused)
    assert moved.dtype == torch.float16
    assert torch.isfinite(moved).all()
    assert torch.allclose(moved.float(), fused.float(), rtol=1e-3)


def test_a_fused_state_of_zero_gives_zero_and_not_nan():
    assert torch.equal(FusedProjection().start(torch.ones(1, 1, 4), torch.zeros(1, 1, 4)), torch.zeros(1, 1, 4))


# The probe


def test_the_probe_on_logits_equals_the_naive_one_with_a_weight_per_token(source):
    part = features(source)
    states, head = part.rows((1, 2)).all(), source.weight.double().numpy()
    probe = fit_probe(states, part.harmful, part.groups, Metric.of("logits", source.weight))
    centred = states - states.mean(0)
    root = Metric.of("logits", source.weight).root
    logits = centred @ head.T / (centred @ root).std()
    naive = LogisticRegression(
        C=probe.strength, class_weight="balanced", solver="newton-cholesky", tol=1e-12, max_iter=500
    ).fit(logits, part.harmful)
    expected, found = naive.decision_function(logits), probe.risk(states)
    slope, offset = np.polyfit(expected, found, 1)  # Platt's calibration is affine
    assert slope > 0
    assert np.abs(slope * expected + offset - found).max() < 1e-6 * np.abs(found).max()


def test_standardisation_and_calibration_fold_exactly(source):
    part = features(source)
    states = part.rows((1, 2)).all()
    probe = fit_probe(states, part.harmful, part.groups, identity_metric())
    inputs = (states - states.mean(0)) / states.std(0)
    model = LogisticRegression(
        C=probe.strength, class_weight="balanced", solver="newton-cholesky", tol=1e-12, max_iter=500
    ).fit(inputs, part.harmful)
    expected, found = model.decision_function(inputs), probe.risk(states)
    slope, offset = np.polyfit(expected, found, 1)
    assert np.abs(slope * expected + offset - found).max() < 1e-6 * np.abs(found).max()


@pytest.mark.parametrize("space", ["logits", "hidden"])
def test_fewer_records_than_dimensions_give_the_same_probe_as_all_dimensions(source, space, monkeypatch):
    part = features(source, n=12).sample(0.5, 0)
    metric = Metric.of(space, source.weight)
    states = part.rows((1, 2)).all()
    assert len(states) < WIDTH
    thin = fit_probe(states, part.harmful, part.groups, metric)
    monkeypatch.setattr("safetykit.adapters.statistics.probe._span", lambda *states: None)
    full = fit_probe(states, part.harmful, part.groups, metric)
    assert thin.strength == full.strength
    assert np.allclose(thin.weight, full.weight, rtol=1e-3, atol=1e-5)


def test_a_component_that_never_varies_gets_no_weight(source):
    part = features(source)
    states = part.rows((1, 2)).all()
    states[:, 5] = 7.0
    probe = fit_probe(states, part.harmful, part.groups, identity_metric())
    assert probe.weight[5] == 0
    assert np.isfinite(probe.weight).all()


def test_a_penalty_that_is_given_is_not_searched_for(source):
    part = features(source, Site.block(0))
    given = [part.rows(Site.block(0)).all(), part.harmful, part.groups, identity_metric()]
    searched = fit_probe(*given)
    same, other = fit_probe(*given, strength=searched.strength), fit_probe(*given, strength=1e-3)
    assert np.allclose(same.weight, searched.weight, rtol=1e-3, atol=1e-6)
    assert other.strength == 1e-3 and other.loss > searched.loss


def test_the_planted_direction_is_recovered(source):
    """Isotropic noise: the best weight is the direction itself."""
    records = [record for record in examples(3000) if record.split == "fit"]
    part = Features.read(source, records, [Site.block(0)])
    probe = fit_probe(part.rows(Site.block(0)).all(), part.harmful, part.groups, identity_metric())
    weight = torch.tensor(probe.weight / np.linalg.norm(probe.weight), dtype=torch.float32)
    assert weight @ source.direction > 0.99


def test_risks_are_calibrated_log_odds(source):
    """Unbalanced labels: the mean predicted probability of unseen records is their share of harmful ones."""
    part = features(source, Site.block(0), n=1200)
    keep = ~part.harmful | (np.arange(len(part.records)) % 4 == 0)
    part = part.take(keep)
    halves = part.groups % 2 == 0 if len(set(part.groups)) > 8 else np.arange(len(part.records)) % 3 > 0
    fitted, other = part.take(halves), part.take(~halves)
    probe = fit_probe(fitted.rows(Site.block(0)).all(), fitted.harmful, fitted.groups, identity_metric())
    probability = 1 / (1 + np.exp(-probe.risk(other.rows(Site.block(0)).all())))
    assert probability.mean() == pytest.approx(other.harmful.mean(), abs=0.03)
    sure = probability > 0.5
    assert other.harmful[sure].mean() == pytest.approx(probability[sure].mean(), abs=0.05)


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.1, 0.5])
@pytest.mark.parametrize("n", [1, 3, 49, 400])
def test_at_most_the_chosen_share_of_harmless_records_is_above_the_threshold(rate, n):
    random = np.random.default_rng(n)
    risk = np.concatenate([random.normal(size=n), random.normal(2, size=30)])
    harmful = np.arange(n + 30) >= n
    threshold = threshold_at(risk, harmful, rate)
    assert (risk[~harmful] > threshold).mean() <= rate
    assert np.abs(risk - threshold).min() > 0  # no record sits on it
    if int(rate * n) < n:  # and it is not higher than needed: one more would be too many
        below = risk[~harmful & (risk < threshold)].max()
        assert (risk[~harmful] >= below).sum() > rate * n - 1


# The fit


@pytest.mark.slow
def test_the_pair_at_which_harm_is_clearest_is_chosen(adapter):
    assert (adapter.branch.safety, adapter.branch.fused) == (Site.block(1), Site.block(2))
    assert adapter.info.hyperparameters["safety_layer"] == 1
    rows = adapter.attachments["detector"]["layers"]
    assert {(row["safety"], row["fused"]) for row in rows} == {(s, f) for f in range(DEPTH) for s in range(f)}
    assert min(rows, key=lambda row: row["loss"])["fused"] == 2


def test_the_stored_probe_separates_and_its_threshold_keeps_the_rate(source, adapter):
    records = [record for record in examples() if record.split == "calibration"]
    states = torch.stack([source.state(record, (1, 2)) for record in records])
    risk = FusedProjection().risk(states[:, None], **adapter.branch.tensors)
    harmful = torch.tensor([record.label == "harmful" for record in records])
    refused = risk > adapter.detector.threshold
    assert refused[~harmful].float().mean() <= 0.02
    assert refused[harmful].float().mean() > 0.9
    assert adapter.detector.refusal == "no." and adapter.detector.refusal_token == 7
    assert {tensor.dtype for tensor in adapter.branch.tensors.values()} == {torch.float32}


@pytest.mark.slow
def test_unprojected_reads_the_final_norm_and_repeats_no_block(source):
    adapter = SASA(variant="unprojected").fit(source, examples(), REFUSAL)
    assert adapter.branch.safety == adapter.branch.fused == Site.block(DEPTH - 1)
    assert adapter.branch.blocks(DEPTH) == DEPTH


def test_the_one_pass_probe_is_an_intervention_and_not_a_branch(source):
    adapter = OnePassProbe(fused_layer=2).fit(source, examples(), REFUSAL)
    (item,) = adapter.interventions
    assert (item.op, item.site, item.scope, item.phase) == ("LinearProbe", Site.block(2), "last", "prefill")
    assert adapter.branch is None and adapter.info.method == "one-pass" and item.reads == ()


@pytest.mark.slow
def test_a_fit_of_a_shallow_decoder_reads_all_once_and_is_the_same_each_time_whatever_the_order(source, adapter):
    before = source.reads
    again = SASA().fit(source, examples()[::-1], REFUSAL)
    assert source.reads == before + 1
    assert torch.equal(again.branch.tensors["weight"], adapter.branch.tensors["weight"])
    assert again.attachments == adapter.attachments
    assert again.info == adapter.info


@pytest.mark.slow
def test_a_fraction_uses_fewer_records_of_every_carrier_and_label(source):
    info = SASA(fraction=0.1).fit(source, examples(), REFUSAL).info
    assert info.data.counts["fit/text/harmful"] == info.data.counts["fit/image/harmless"] == 8
    assert info.data.counts["calibration/text/harmful"] == 80


def test_the_adapter_comes_back_from_disk_as_it_was(adapter, tmp_path):
    loaded = Adapter.load(adapter.save(tmp_path / "sasa"))
    assert loaded.info == adapter.info and loaded.detector == adapter.detector
    assert torch.equal(loaded.branch.tensors["weight"], adapter.branch.tensors["weight"])
    assert loaded.attachments == adapter.attachments


def test_the_report_holds_every_figure_its_schema_names(adapter):
    report = adapter.attachments["detector"]
    assert set(report) == {
        "false_positive_rate",
        "threshold",
        "place",
        "out_of_fold",
        "curves",
        "histogram",
        "layers",
        "tried_on",
        "learning_curve",
        "left_out",
        "comparison",
    }
    assert set(report["curves"]) == {"all", "text", "image"}
    for curve in report["curves"].values():
        assert len(curve["roc"]) <= 200 and curve["roc"][0] == [0, 0] and curve["roc"][-1] == [1, 1]
        assert all(0 <= value <= 1 for point in curve["precision_recall"] for value in point)
    counts = report["histogram"]["counts"]
    assert sum(counts["text"]["harmful"]) == 80
    assert len(report["histogram"]["edges"]) == len(counts["text"]["harmful"]) + 1
    assert [row["fraction"] for row in report["learning_curve"]] == list(FRACTIONS)
    whole = report["learning_curve"][-1]
    assert whole["auroc"]["mean"] == report["curves"]["all"]["auroc"] and whole["draws"] == 1
    assert {(row["kind"], row["name"]) for row in report["left_out"]} == {
        *(("category", kind) for kind in KINDS),
        ("carrier", "text"),
        ("carrier", "image"),
    }
    assert [row["detector"] for row in report["comparison"]] == ["projected", "unprojected", "one-pass"]


def test_folds_hold_out_whole_categories_and_pairs_where_there_are_too_few(source):
    part = features(source)
    assert len(set(part.groups)) == 2 * len(KINDS)
    plain = replace(part, records=tuple(replace(record, category="") for record in part.records))
    groups = dict(zip((record.id for record in plain.records), plain.groups, strict=True))
    assert len(set(groups.values())) == 160
    assert groups["fit-bad3"] == groups["fit-good3"] != groups["fit-good4"]


# Errors


@pytest.mark.parametrize(("split", "label"), [("fit", "harmful"), ("fit", "harmless"), ("calibration", "harmless")])
def test_a_missing_label_is_named(source, split, label):
    left = [record for record in examples(8) if (record.split, record.label) != (split, label)]
    with pytest.raises(UsageError, match=f"The {split} split holds no {label} record"):
        SASA().fit(source, left, REFUSAL)


def test_a_safety_layer_after_the_fused_one_is_refused():
    with pytest.raises(UsageError, match="safety layer 3 lies after the fused layer 2"):
        SASA(safety_layer=3, fused_layer=2)


def test_a_layer_that_does_not_exist_is_refused(source):
    with pytest.raises(UsageError, match="the decoder has 4 layers"):
        SASA(safety_layer=1, fused_layer=9).fit(source, examples(8), REFUSAL)


def test_a_first_block_as_fused_layer_leaves_no_pair(source):
    with pytest.raises(UsageError, match="no other is left for the projection"):
        SASA(fused_layer=0).fit(source, examples(8), REFUSAL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"false_positive_rate": 1.0}, "false_positive_rate cannot be 1.0"),
        ({"fraction": 0.0}, "fraction cannot be 0.0"),
        ({"variant": "unprojected", "safety_layer": 1}, "safety_layer does nothing with variant unprojected"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        SASA(**options)


def test_states_that_overflowed_are_refused(source):
    class Broken(PlantedSource):
        def state(self, record, place):
            return super().state(record, place) * float("inf")

    with pytest.raises(UsageError, match="hold NaN or infinity"):
        SASA(safety_layer=1, fused_layer=2).fit(Broken(), examples(8), REFUSAL)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["hidden", "logits"])
@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("kind", [SASA, OnePassProbe])
def test_few_records_of_one_carrier_and_no_category_suffice(source, kind, count, space):
    few = [replace(record, carrier="text", category="") for record in examples(count)]
    adapter = kind(space=space).fit(source, few, REFUSAL)
    assert len(adapter.attachments["detector"]["learning_curve"]) == len(FRACTIONS)
    assert np.isfinite(adapter.detector.threshold)


@pytest.mark.parametrize("space", ["hidden", "logits"])
def test_records_whose_states_are_all_the_same_teach_nothing_and_break_nothing(space):
    """So may be the states of a learning curve's first draw, which is of two records."""

    class Same(PlantedSource):
        def state(self, record, place):
            return torch.full((WIDTH,), 3.0)

    adapter = OnePassProbe(fused_layer=1, space=space).fit(Same(), examples(6), REFUSAL)
    assert not adapter.interventions[0].tensors["weight"].any()
    assert adapter.attachments["detector"]["out_of_fold"]["auroc"] == 0.5
