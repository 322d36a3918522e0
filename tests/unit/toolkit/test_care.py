"""CARE on a real model: states token by token, the sweep's grid, and the command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care.care import fit_on
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.care.sweep import CareSolver, coarse, refined
from safetykit.adapters.care.usual import usual, windows
from safetykit.adapters.errors import UsageError
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.batching import BatchSize
from safetykit.toolkit.model.token_states import stream_tokens
from safetykit.toolkit.workbench import Workbench, harmful_outcomes


@pytest.fixture(scope="module")
def records():
    fit = load_records(data_path("reference"), ["fit"])
    return subset(fit, 48)


def test_token_states_pool_to_those_of_capture(random_vlm, records):
    """Padding never counts: mean states by token and by record agree, whatever the batch."""
    sites = [Site.block(1), Site("mlp", 2)]
    expected = {}
    for batch, states in random_vlm.states([(record,) for record in records], sites, "text"):
        for row, record in enumerate(batch):
            expected[record.id] = {site: states[site][row] for site in sites}
    seen = set()
    for batch in random_vlm.token_states(records, sites, batch_size=5):
        for row, record in enumerate(batch.records):
            seen.add(record.id)
            for site in sites:
                pooled = batch.states[site][row][batch.textual[row]].mean(0)
                assert torch.allclose(pooled, expected[record.id][site], atol=1e-4)
            assert batch.visual[row].sum() == (16 if record.image else 0)
    assert seen == {record.id for record in records}


def test_the_response_follows_the_prompt_as_text(random_vlm, records):
    site, (record, *_) = Site.block(0), [record for record in records if record.image]
    (short,) = random_vlm.token_states([record], [site])
    (long,) = random_vlm.token_states([record], [site], with_response=True)
    added = len(random_vlm.inputs.tokenizer(record.response).input_ids)
    assert long.textual.sum() - short.textual.sum() == added > 0
    before = short.states[site].shape[1]
    same = torch.allclose(long.states[site][:, :before], short.states[site], atol=1e-5)
    assert same, "the prompt sees no later token"


def test_a_site_without_prompt_positions_is_refused(random_vlm, records):
    with pytest.raises(UsageError, match="projector has no hidden state per token"):
        list(stream_tokens(random_vlm, records, [Site("projector")], BatchSize(8)))
    with pytest.raises(UsageError, match="no records or no sites"):
        list(stream_tokens(random_vlm, [], [Site.block(0)], BatchSize(8)))


def test_a_solver_gives_what_a_fit_gives(random_vlm, records):
    bench = Workbench(random_vlm, records)
    solver = CareSolver(bench)
    settings = [
        CARE(layers=(1, 2), rank=2, selection="kernel"),
        CARE(variant="official", layers=(3,), rank=2, fusion="parallel"),
        CARE(layers=(2,), rank=2, site="block", contrast="label", selection="none", modalities="textual"),
    ]
    for care in settings:
        fitted, solved = fit_on(care, bench), solver(care)
        assert fitted.info == solved.info
        for one, other in zip(fitted.interventions, solved.interventions, strict=True):
            assert one.op == other.op and one.site == other.site
            for name, tensor in one.tensors.items():
                assert torch.allclose(tensor, other.tensors[name], atol=1e-5)


def test_behaviour_is_asked_of_the_model(random_vlm, records):
    """An untrained model answers nothing as the records say and refuses nothing."""
    assert set(harmful_outcomes(random_vlm, records, 2).values()) == {"other"}
    with pytest.raises(UsageError, match="no harmful record that the model answers"):
        fit_on(CARE(contrast="behaviour", rank=2), Workbench(random_vlm, records))
    assert harmful_outcomes(random_vlm, [record for record in records if record.label == "harmless"]) == {}


def test_an_adapter_is_saved_and_moves_every_token_in_both_phases(random_vlm, records, tmp_path):
    adapter = CARE(layers=(1,), rank=4, site="block", contrast="label").fit(random_vlm, records)
    loaded = Adapter.load(adapter.save(tmp_path / "care"))
    assert loaded.attachments == adapter.attachments
    (plain,) = random_vlm.token_states(records[:1], [Site.block(1)])
    with random_vlm.applied(loaded):
        (moved,) = random_vlm.token_states(records[:1], [Site.block(2)])
    assert moved.states[Site.block(2)].shape == plain.states[Site.block(1)].shape
    (item,) = loaded.interventions
    assert (item.scope, item.phase) == ("all", "both")


@pytest.mark.parametrize("depth", [1, 2, 8, 32])
def test_windows_lie_inside_the_decoder(depth):
    for window in windows(depth).values():
        assert window and set(window) <= set(range(depth))


def test_the_grids_hold_every_fusion_and_variant_once_and_keep_what_is_given():
    first = coarse(8, 128, {})
    assert {(care.variant, care.fusion) for care in first} >= {
        ("corrected", fusion) for fusion in ("adaptive", "sequential", "parallel", "masked")
    } | {("official", "adaptive")}
    assert len(first) == len(set(first)) < 100
    more = {care.fusion for leader in first for care in refined(leader, 128, {})}
    assert more == {"adaptive", "sequential", "parallel", "masked", "injection"}
    given = {"layers": (3,), "rank": 4, "site": "block", "fusion": "adaptive"}
    for care in [*coarse(8, 128, given), *refined(CARE(**given), 128, given)]:
        assert (care.layers, care.rank, care.site, care.fusion) == ((3,), 4, "block", "adaptive")
        assert care.variant == "corrected", "the official variant acts at MLP outputs only"
    assert all(care.fusion != "masked" for care in coarse(8, 128, {"scope": "text"}))


def command(*arguments):
    from safetykit.cli import application

    return CliRunner().invoke(application(["fit"]), ["fit", "care", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fusion", "mixed"], "--fusion cannot be 'mixed'. It is adaptive, sequential"),
        (["--k", "0"], "--k cannot be 0. It is at least 1"),
        (["--variant", "official", "--site", "block"], "--site does nothing with --variant official"),
        (["--map-layers", "2"], "--map-layers takes layers from a channel map"),
        (["--map", "nowhere"], "There is no channel map at nowhere"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(tmp_path, options, message):
    result = command("no-such-model", "--data", "reference", "-o", tmp_path / "out", *options)
    found = result.exception
    assert isinstance(found, UsageError) and message in str(found)
    assert not (tmp_path / "out").exists()


def test_the_command_writes_an_adapter_with_its_diagnostics(random_checkpoint, tmp_path):
    options = ["--layers", "2-3", "--k", "4", "--fusion", "parallel", "--site", "mlp", "--contrast", "label"]
    result = command(random_checkpoint, "--data", "reference", "-o", tmp_path / "care", "--json", *options)
    assert result.exit_code == 0, result.output
    adapter = Adapter.load(tmp_path / "care")
    assert adapter.info.method == "care" and adapter.info.hyperparameters["rank"] == 4
    assert [str(item.site) for item in adapter.interventions] == ["decoder.layers.2.mlp", "decoder.layers.3.mlp"]
    assert set(adapter.attachments["care"]["layers"]) == {"2", "3"}


def test_what_is_fitted_without_a_sweep_keeps_given_options_and_scales_with_the_model():
    care = usual({}, 8, 128)
    assert (care.layers, care.rank, care.site, care.contrast) == ((2, 3, 4, 5), 16, "block", "behaviour")
    assert usual({"rank": 64}, 32, 4096).rank == 64
    assert usual({}, 32, 4096).layers == tuple(range(8, 24))
    assert usual({"variant": "official"}, 8, 128).site == "mlp"
    assert usual({"scope": "last"}, 8, 128).fusion == "adaptive"
    assert usual({"fusion": "sequential", "site": "mlp"}, 8, 128).fusion == "sequential"


def test_responses_are_pooled_only_if_there_are_some(random_checkpoint, tmp_path):
    rows = [
        {"id": f"{split}{label}{word}", "prompt": f"what is {word} ?", "label": label, "split": split}
        for split in ("fit", "calibration")
        for label in ("harmful", "harmless")
        for word in ("a bus", "a beer", "this", "an apple in the bus")
    ]
    data = tmp_path / "records.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ["--with-response", "--modalities", "textual", "--contrast", "label", "--layers", "2", "--k", "2"]
    call = (random_checkpoint, "--data", data, "-o", tmp_path / "care", *options)
    refused = command(*call).exception
    assert isinstance(refused, UsageError)
    assert "--with-response does nothing: no record of the fit split has a response" in str(refused)
    data.write_text("\n".join(json.dumps({**row, "response": "a bus ."}) for row in rows))
    assert command(*call).exit_code == 0
