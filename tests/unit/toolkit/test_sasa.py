"""SASA on a model: the fork is the published procedure, and fitting it from the command line."""

import hashlib
import json

import pytest
import torch
from typer.testing import CliRunner

from safetykit.adapters import Adapter, Site, UsageError
from safetykit.adapters.artifact.correctors import describe_correctors
from safetykit.adapters.protocols import Refusal
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.statistics.detector import Features
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.cli import application
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.refusal import RefusalTokens
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.second_pass import SecondPass, published_states
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import refusal_of

PAIRS = ((0, 1), (2, 5), (0, 7), (4, 4))


@pytest.fixture(scope="module")
def vlm():
    return VLM.from_pretrained(model_path("reference:mild"))


@pytest.fixture(scope="module")
def records():
    """Of every carrier and label of the fit and calibration splits, prompts of many lengths."""
    found = load_records(data_path("reference"), ["fit", "calibration"])
    groups: dict[tuple, list] = {}
    for record in found:
        groups.setdefault((record.split, record.carrier, record.label), []).append(record)
    return [record for members in groups.values() for record in members[:: max(1, len(members) // 12)][:12]]


def by_id(stream):
    return {record.id: row for batch, states in stream for record, row in zip(batch, states, strict=True)}


def forked(vlm, records, place, batch_size):
    stream = SecondPass(vlm, batch_size=batch_size).branch_states(records, PAIRS)
    return by_id((batch, found[place]) for batch, found in stream)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_fork_is_the_published_two_passes(vlm, records, pair, batch_size):
    """One record alone, and records of different lengths padded together; read as a probe reads them."""
    chosen = records[::5]
    weight = torch.randn(vlm.base.d_model, generator=torch.Generator().manual_seed(1)) / 4
    exact = by_id(published_states(vlm, chosen, *pair, batch_size=batch_size))
    fork = forked(vlm, chosen, pair, batch_size)
    assert exact.keys() == fork.keys() == {record.id for record in chosen}
    for name, state in exact.items():
        assert abs(float((state - fork[name]) @ weight)) <= 1e-5


def test_padding_changes_no_state(vlm, records):
    alone, together = (forked(vlm, records[::5], (2, 5), size) for size in (1, 16))
    for name, state in alone.items():
        assert torch.allclose(state, together[name], atol=1e-4)


def test_the_projection_moves_the_state_and_s_equal_to_f_does_not(vlm, records):
    places = [(2, 5), (4, 4), Site("final_norm"), Site.block(4)]
    found = Features.read(SecondPass(vlm), records[::3], places).states
    assert torch.allclose(found[4, 4], found[Site("final_norm")], atol=1e-4)
    assert (found[2, 5] - found[Site("final_norm")]).norm(dim=1).min() > 0.1


def test_states_of_the_normal_pass_are_those_that_capture_reads(vlm, records):
    places = [Site.block(3), Site("final_norm")]
    found = Features.read(SecondPass(vlm), records, places)
    row = {record.id: at for at, record in enumerate(found.records)}
    for batch, states in vlm.states([(record,) for record in records], places):
        rows = [row[record.id] for record in batch]
        for place in places:
            assert torch.allclose(states[place], found.states[place][rows], atol=1e-4)


def test_blocks_may_return_tuples(vlm, records):
    """Some architectures return (hidden, …) and unpack it: the same states come out."""
    chosen = records[::9]
    plain = forked(vlm, chosen, (2, 5), 4)

    def unpack(module, args):
        return (args[0][0], *args[1:]) if isinstance(args[0], tuple) else None

    handles = [layer.register_forward_hook(lambda module, args, output: (output, None)) for layer in vlm.parts.layers]
    handles += [part.register_forward_pre_hook(unpack) for part in (*vlm.parts.layers, vlm.parts.final_norm)]
    try:
        fork = forked(vlm, chosen, (2, 5), 4)
        exact = by_id(published_states(vlm, chosen, 2, 5, batch_size=4))
    finally:
        for handle in handles:
            handle.remove()
    assert all(torch.equal(plain[name], fork[name]) for name in plain)
    assert all(torch.allclose(plain[name], exact[name], atol=1e-5) for name in plain)


def test_a_decoder_that_changes_states_between_its_blocks_is_refused(vlm, records):
    handle = vlm.parts.layers[5].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]))
    try:
        with pytest.raises(UsageError, match="changes states between its blocks 4 and 5.*at least 5"):
            list(SecondPass(vlm).branch_states(records[:2], [(2, 6)]))
        list(SecondPass(vlm).branch_states(records[:2], [(5, 6)]))  # what lies before the branch does not matter
    finally:
        handle.remove()


def test_no_hook_is_left_behind(vlm, records):
    def hooks():
        return [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in vlm.model.modules()]

    before = hooks()
    list(published_states(vlm, records[:3], 2, 5))
    list(SecondPass(vlm).branch_states(records[:3], [(2, 5)]))
    assert hooks() == before


def test_correctors_act_in_the_fork_as_in_the_published_passes(vlm, records):
    corrector = VLMGuard(layers=(1, 6), alpha=4.0).fit(vlm, records)
    chosen = records[::7]
    with vlm.applied(corrector):
        exact = by_id(published_states(vlm, chosen, 2, 5, batch_size=4))
        fork = forked(vlm, chosen, (2, 5), 4)
    plain = forked(vlm, chosen, (2, 5), 4)
    assert all(torch.allclose(exact[name], fork[name], atol=1e-4) for name in exact)
    assert any((fork[name] - plain[name]).norm() > 0.1 for name in fork)


@pytest.mark.slow
def test_the_applied_adapter_gives_the_risk_that_was_fitted(vlm, records):
    source = SecondPass(vlm)
    adapter = SASA(safety_layer=2, fused_layer=4).fit(source, records, Refusal("no .", 3))
    chosen = records[::6]
    found = Features.read(source, chosen, [(2, 4)])
    expected = found.states[2, 4] @ adapter.branch.tensors["weight"] + adapter.branch.tensors["bias"]
    with vlm.applied(adapter):
        for record, risk in zip(found.records, expected, strict=True):
            (answer,) = vlm.generate([Request(record.prompt, record.picture())], 2)
            assert answer.scores["risk"] == pytest.approx(float(risk) - adapter.detector.threshold, abs=2e-4)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(5, 2)], "safety layer 5 lies after the fused layer 2"),
        ([(1, 8)], "the decoder has 8 layers"),
        ([Site("logits")], "A detector cannot read logits"),
    ],
)
def test_places_that_cannot_be_read_are_refused(vlm, records, places, message):
    with pytest.raises(UsageError, match=message):
        list(SecondPass(vlm).branch_states(records[:2], places))


def test_no_records_are_refused(vlm):
    with pytest.raises(UsageError, match="no records to read states from"):
        list(SecondPass(vlm).branch_states([], [(1, 2)]))


def test_the_refusal_is_the_models_own_or_the_given_text(vlm, records):
    own = RefusalTokens.find(vlm, records)
    assert refusal_of(vlm, records) == Refusal(own.text, own.first)
    given = refusal_of(vlm, records, "sorry, that is not allowed here.")
    assert vlm.inputs.decode([given.token]) == "sorry"
    with pytest.raises(UsageError, match="The refusal is empty"):
        refusal_of(vlm, records, " ")


# The command line


@pytest.fixture(scope="module")
def few(tmp_path_factory, records):
    """A file of few records; pictures stay where they are."""
    folder = data_path("reference")
    path = tmp_path_factory.mktemp("few") / "records.jsonl"
    lines = []
    for record in records:
        row = record.model_dump(mode="json")
        if row["image"]:
            row["image"] = str((folder / row["image"]).resolve())
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.slow
def test_sasa_and_the_one_pass_probe_fit_from_the_command_line(vlm, records, few, tmp_path):
    out, second = tmp_path / "sasa", tmp_path / "probe"
    common = ["reference:mild", "--data", str(few), "--json"]
    layers = ["--safety-layer", "2", "--fused-layer", "4"]
    result = CliRunner().invoke(
        application(["fit"]), ["fit", "sasa", *common, "-o", str(out), *layers, "--refusal", "sorry."]
    )
    assert result.exit_code == 0, result.output
    made = Adapter.load(out)
    assert (made.branch.safety, made.branch.fused) == (Site.block(2), Site.block(4))
    assert made.detector.refusal == "sorry."
    guard = VLMGuard(layers=(1,), alpha=4.0).fit(vlm, records).save(tmp_path / "guard")
    options = ["-o", str(second), "--fused-layer", "4", "--refusal", "sorry."]
    result = CliRunner().invoke(application(["fit"]), ["fit", "one-pass", *common, *options, "--with", str(guard)])
    assert result.exit_code == 0, result.output
    corrected = Adapter.load(second)
    assert corrected.interventions[0].site == Site.block(4)
    assert corrected.info.hyperparameters["corrected_by"] == describe_correctors([guard])


def test_layers_that_exclude_each_other_are_refused_before_a_model_is_loaded(few, tmp_path):
    layers = ["--safety-layer", "5", "--fused-layer", "2"]
    options = ["--data", str(few), "-o", str(tmp_path / "x"), *layers]
    result = CliRunner().invoke(application(["fit"]), ["fit", "sasa", "no-model", *options])
    assert isinstance(result.exception, UsageError)
    assert "safety layer 5 lies after the fused layer 2" in str(result.exception)


@pytest.mark.slow
def test_a_detector_is_no_corrector(vlm, records, tmp_path):
    folder = SASA(safety_layer=2, fused_layer=4).fit(SecondPass(vlm), records, Refusal("no .", 3)).save(tmp_path / "d")
    with pytest.raises(UsageError, match="is a detector itself"):
        describe_correctors([folder])


def test_correctors_are_named_with_the_digest_of_their_manifest(vlm, records, tmp_path):
    folder = VLMGuard(layers=(3,)).fit(vlm, records).save(tmp_path / "guard")
    (found,) = describe_correctors([folder])
    assert found["method"] == "vlm-guard"
    assert found["manifest_sha256"] == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
