"""What configuration, manifest and records already rule out is refused before weights are loaded or graphs opened."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from labelled_rows import rows
from PIL import Image
from tiny_llava import vlm  # noqa: F401  a fixture that base_folder needs

from safetykit.adapters import Intervention, Site
from safetykit.adapters.artifact.manifest import DetectorInfo


@pytest.fixture(scope="session")
def small(vlm):  # noqa: F811
    """A checkpoint of 3 layers of width 32; the random one has 8 of 128."""
    return vlm.path


@pytest.mark.parametrize(
    ("site", "said"),
    [
        ("decoder.layers.99", "Site decoder.layers.99 does not exist: the decoder has 8 layers."),
        ("decoder.layers.8.mlp", "the last one is 7"),
        ("vision", "Texts cannot be embedded at vision."),
        ("logits", "Texts cannot be embedded at logits."),
    ],
)
def test_an_index_at_a_site_that_the_model_lacks(refused, random_checkpoint, site, said):
    assert said in refused("index", "build", "reference", "--model", random_checkpoint, "--site", site, "-o", "out")


@pytest.fixture
def index(random_vlm, tmp_path):
    """An index of two texts by the random model."""
    from safetykit.toolkit.retrieval.build import build_index
    from safetykit.toolkit.retrieval.embedders import VLMEmbedder

    build_index(lambda: iter(["a red apple", "a green apple"]), VLMEmbedder(random_vlm), tmp_path / "index")
    return tmp_path / "index"


def test_a_search_by_what_did_not_make_the_index(refused, index, small):
    said = refused("index", "search", index, "--model", small, "--text", "apple")
    assert "was made by" in said and "whose states have width 32" in said
    assert f"not by {small}" in refused("index", "search", index, "--encoder", small, "--text", "apple")


def test_a_diagnosis_with_too_small_a_budget_says_the_least_that_works(refused, random_checkpoint, data):
    typed = ("diagnose", random_checkpoint, "--data", data(rows()), "-o", "out")
    said = refused(*typed, "--budget", 20)
    assert "takes at least" in said and "Pass --budget" in said
    assert said != refused(*typed, "--budget", 20, "--neurons", 0)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (list(rows(paired=False)), "There are no pairs of a harmful and a harmless record"),
        (list(rows(labels=["harmless"])), "There is no harmful text record"),
    ],
)
def test_a_diagnosis_of_records_that_show_nothing(refused, random_checkpoint, data, found, said):
    assert said in refused("diagnose", random_checkpoint, "--data", data(found), "-o", "out")


def test_a_defence_of_records_without_pictures(refused, random_checkpoint, data):
    typed = ("eval", random_checkpoint, "--data", data(rows()), "--split", "fit", "--defence", "ecso")
    assert "The defence ecso does nothing for these records: none has a picture" in refused(*typed)


def test_a_diagnosis_in_python_refuses_as_early(refused, random_checkpoint, data):
    from safetykit.adapters.errors import UsageError
    from safetykit.toolkit.diagnosis import diagnose

    with pytest.raises(UsageError, match="at least"):
        diagnose(random_checkpoint, data(rows()), budget=20)


def test_an_adapter_of_a_model_of_another_shape(refused, adapter_folder, small, data):
    records = data(rows())
    shapes = "was fitted on a model of 8 layers of width 128;"
    stack = ("--adapter", adapter_folder)
    said = refused("eval", small, "--data", records, "--split", "fit", *stack, code=4)
    assert shapes in said and "has 3 of width 32" in said and "--allow-wrong-base" in said
    assert shapes in refused("lora", small, *stack, "-o", "out", code=4)
    assert shapes in refused("export", small, *stack, "-o", "out", code=4)
    fit = ("fit", "one-pass", small, "--data", "reference", "-o", "out")
    said = refused(*fit, "--with", adapter_folder, code=4)
    assert shapes in said and "--allow-wrong-base" not in said  # fit has no such option


def test_a_model_of_another_shape_is_not_allowed_either(refused, adapter_folder, make_adapter, small, data, tmp_path):
    deep = make_adapter("decoder.layers.7").save(tmp_path / "deep")
    for command in (("eval", small, "--data", data(rows()), "--split", "fit"), ("export", small, "-o", "out")):
        said = refused(*command, "--adapter", adapter_folder, "--allow-wrong-base")
        assert "changes states of width 128 at decoder.layers.2" in said and "they have 32" in said
        said = refused(*command, "--adapter", deep, "--allow-wrong-base")
        assert "Site decoder.layers.7 does not exist: the decoder has 3 layers." in said


def test_what_cannot_be_folded_is_no_lora(refused, adapter_folder, random_checkpoint):
    said = refused("lora", random_checkpoint, "--adapter", adapter_folder, "-o", "out")
    assert "cannot be folded" in said


def test_two_detectors(refused, make_adapter, random_checkpoint, data, tmp_path):
    tensors = {"weight": torch.zeros(128), "bias": torch.tensor(0.0)}
    probe = Intervention("LinearProbe", Site.parse("decoder.layers.2"), "last", "prefill", tensors)
    detector = DetectorInfo(threshold=0.0, refusal="sorry", refusal_token=3)
    folder = replace(make_adapter(), interventions=(probe,), detector=detector).save(tmp_path / "detector")
    stack = ("--adapter", folder, "--adapter", folder)
    said = refused("eval", random_checkpoint, "--data", data(rows()), "--split", "fit", *stack)
    assert "both decide when to refuse" in said


def test_a_text_model_that_is_not_there_or_has_another_shape(refused, random_checkpoint, small):
    fit = ("fit", "vlm-guard", random_checkpoint, "--data", "reference", "-o", "out", "--text-model")
    assert "The text model has 3 layers of width 32, the VLM 8 of 128." in refused(*fit, small)
    assert "There is no model folder at nowhere." in refused(*fit, "nowhere")


def test_a_fit_that_must_learn_how_the_model_refuses_and_cannot(refused, random_checkpoint, data, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    found = [
        {**row, "id": f"{split}-{row['id']}", "split": split, "pair": None, "image": "p.png", "carrier": "image"}
        for split in ("fit", "calibration")
        for row in rows()
    ]
    said = refused("fit", "one-pass", random_checkpoint, "--data", data(found), "-o", "out")
    assert "There is no harmful text record to learn from how the model refuses." in said


def test_graphs_of_another_model(refused, int4_folder, base_folder, random_checkpoint):
    fit = ("fit", "one-pass", random_checkpoint, "--data", "reference", "-o", "out")
    shapes = "were exported from a model of 3 layers of width 32;"
    assert shapes in refused(*fit, "--on", int4_folder, code=4)
    assert shapes in refused("export", random_checkpoint, "--base-onnx", base_folder, "-o", "out", code=4)
    said = refused("verify", base_folder, "--model", random_checkpoint, code=4)
    assert "was exported from a model of 3 layers of width 32;" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max-prompt-tokens", "99999"], "Prompts cannot have up to 99999 tokens."),
        (["--swap", "{adapter}"], "The export's mode is base: its parameters are fixed."),
        (["--external-index", "{index}"], "retrieves nothing. Leave out --external-index."),
        (["--provider", "cuda"], "ONNX Runtime does not give cuda here."),
    ],
)
def test_options_that_an_export_cannot_have(refused, base_folder, adapter_folder, index, data, options, said):
    names = {"{adapter}": adapter_folder, "{index}": index}
    options = [names.get(one, one) for one in options]
    commands = (
        ("eval", base_folder, "--data", data(rows()), "--split", "fit"),
        ("run", base_folder, "--prompt", "what is this ?"),
        ("serve", base_folder, "--check", "--port", "0"),
    )
    for command in commands:
        assert said in " ".join(refused(*command, *options).split())


def test_a_prompt_limit_that_a_checkpoint_cannot_have(refused, random_checkpoint, data):
    said = refused("eval", random_checkpoint, "--data", data(rows()), "--split", "fit", "--max-prompt-tokens", "99999")
    assert "This model takes 1 to 256 (max_position_embeddings)." in said


def test_verify_refuses_a_swap_and_a_provider_before_parity(refused, base_folder, adapter_folder, small):
    verify = ("verify", base_folder, "--model", small)
    assert "its parameters are fixed" in refused(*verify, "--swap", adapter_folder)
    assert "does not give cuda" in refused(*verify, "--provider", "cuda")


def test_canaries_of_an_export_that_has_none(refused, base_folder):
    assert "holds no canaries" in refused("verify", base_folder, "--canary")
    assert "holds no canaries" in refused("serve", base_folder, "--check", "--port", "0", "--canary")


def test_an_export_on_a_device_that_is_not_there(refused, random_checkpoint, adapter_folder, monkeypatch):
    from safetykit.toolkit.model import placement

    monkeypatch.setattr(placement, "accelerators", list)
    typed = ("export", random_checkpoint, "--adapter", adapter_folder, "--device", "cuda", "-o", "out")
    said = refused(*typed)
    assert "There is no device cuda here." in said and "exporting" not in said


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("vlm-guard --layers 99", "--layers names layer 99: the decoder has 8 layers."),
        ("sasa --safety-layer 99", "--safety-layer names layer 99: the decoder has 8 layers."),
        ("care --floor -1", "--floor cannot be -1.0. It is at least 0."),
        ("nullsteer --dropped 3 --variance 0.9", "--dropped and --variance both say what is left alone."),
    ],
)
def test_a_fit_that_settings_and_configuration_rule_out_needs_no_torch(
    refused, random_checkpoint, monkeypatch, typed, said
):
    monkeypatch.setitem(sys.modules, "safetykit.toolkit.commands.fit_one", None)  # which needs it
    method, *options = typed.split()
    assert said in refused("fit", method, random_checkpoint, "--data", "reference", "-o", "out", *options)


def test_a_detector_that_was_not_fitted_under_its_corrector(
    refused, make_adapter, adapter_folder, random_checkpoint, monkeypatch, tmp_path
):
    tensors = {"weight": torch.zeros(128), "bias": torch.tensor(0.0)}
    probe = Intervention("LinearProbe", Site.parse("decoder.layers.2"), "last", "prefill", tensors)
    detector = DetectorInfo(threshold=0.0, refusal="sorry", refusal_token=3)
    folder = replace(make_adapter(), interventions=(probe,), detector=detector).save(tmp_path / "detector")
    monkeypatch.setitem(sys.modules, "safetykit.export.pipeline.export", None)  # which loads all that exports
    stack = ("--adapter", adapter_folder, "--adapter", folder)
    said = refused("export", random_checkpoint, *stack, "--data", "reference", "-o", "out")
    assert "The detector (test) was fitted on the model without a corrector" in said and "--data reference" in said


def test_an_adapter_of_another_chat_template(refused, random_checkpoint, adapter_folder, data, tmp_path):
    (tmp_path / "other.jinja").write_text("{{ messages[0]['content'] }} other")
    typed = ("eval", random_checkpoint, "--data", data(rows()), "--split", "fit", "--adapter", adapter_folder)
    said = refused(*typed, "--chat-template", tmp_path / "other.jinja", code=4)
    assert str(random_checkpoint) in said and "templated" not in said, said
    fit = ("fit", "one-pass", random_checkpoint, "--data", "reference", "-o", "out", "--with", adapter_folder)
    assert "templated" not in refused(*fit, "--chat-template", tmp_path / "other.jinja", code=4)


def test_a_prompt_that_is_too_long_for_an_export(refused, base_folder, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "content": "what is this ? " * 9}]))
    for asked in (("--messages", "m.json"), ("--prompt", "what is this ? " * 9)):
        said = refused("run", base_folder, *asked, "--max-prompt-tokens", 25)
        assert "loading" not in said and "25" in said


def test_what_is_misspelt_is_refused_with_what_was_meant(refused, random_checkpoint, tmp_path):
    assert "Did you mean 'reference:mild'?" in refused("inspect", "reference:mid")
    assert "Did you mean 'reference'?" in refused("eval", random_checkpoint, "--data", "refrence")
    assert "Did you mean 'reference'?" in refused("fit", "tga", random_checkpoint, "--data", "refrence", "-o", "out")
    typed = ("fit", "vlm-guard", random_checkpoint, "--data", "reference", "-o", "out", "--scope", "visual")
    assert "Did you mean 'vision'?" in refused(*typed)
    (tmp_path / "plain.jinja").write_text("no template")
    said = refused("inspect", random_checkpoint, "--chat-template", tmp_path / "plain.jinja")
    assert "plain.jinja holds no `{`, and so no chat template." in said and "by a Path" not in said
