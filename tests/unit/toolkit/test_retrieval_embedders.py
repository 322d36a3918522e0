"""Embedders: the model's own decoder, CLIP text towers and sentence-transformers folders, all from disk."""

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

from safetykit.adapters import InvalidArtifact, Site, UsageError
from safetykit.toolkit.retrieval.embedders import EncoderEmbedder, VLMEmbedder

TEXTS = ["a picture of a bow", "a very long picture of a grey sword and of a bow of a sword", "sword"]


def tokenizer():
    words = dict.fromkeys(["<pad>", "<unk>", "</s>", *" ".join(TEXTS).split()])
    inner = Tokenizer(WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def clip_folder(folder, whole=True):
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=10,
        projection_dim=12,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=0,
    )
    if whole:
        vision = CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
        CLIPModel(config).save_pretrained(folder)
    else:
        CLIPTextModelWithProjection(text).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sentence_folder(folder, pooling="mean_tokens", normalise=True, **settings):
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalise else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": at, "name": str(at), "path": paths[at], "type": f"sentence_transformers.models.{kind}"}
        for at, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": name == pooling for name in ("mean_tokens", "cls_token", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **modes}))
    if settings:
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def test_a_texts_mean_decoder_state_does_not_depend_on_its_batch(random_vlm):
    texts = ["a picture of a brown dagger.", "a picture of a grey sword, a risky weapon.", "a bow"]
    embedder = VLMEmbedder(random_vlm, Site.block(4))
    together = embedder.embed(texts)
    assert embedder.dimension == together.shape[1] == 128
    for text, found in zip(texts, together, strict=True):
        ids = random_vlm.inputs.tokenizer([text], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = random_vlm.model(input_ids=ids, output_hidden_states=True).hidden_states[5][0]
        assert np.allclose(found, states.mean(0).numpy(), atol=1e-5)


def test_a_vlm_embeds_at_decoder_sites_only(random_vlm):
    assert str(VLMEmbedder(random_vlm).site) == "decoder.layers.5"
    assert VLMEmbedder(random_vlm).info.sha256 == random_vlm.fingerprint
    with pytest.raises(UsageError, match="cannot be embedded at projector.*decoder.layers"):
        VLMEmbedder(random_vlm, Site("projector"))
    with pytest.raises(UsageError, match="decoder.layers.99 does not exist"):
        VLMEmbedder(random_vlm, Site.block(99))


@pytest.mark.parametrize("whole", [True, False])
def test_a_clip_folder_gives_its_projected_text_embeddings(tmp_path, whole):
    folder = clip_folder(tmp_path / "clip", whole)
    embedder = EncoderEmbedder(folder)
    found = embedder.embed(TEXTS)
    model = CLIPTextModelWithProjection.from_pretrained(folder).eval()
    for text, row in zip(TEXTS, found, strict=True):
        ids = tokenizer()([text], return_tensors="pt", truncation=True, max_length=10)["input_ids"]
        with torch.no_grad():
            assert np.allclose(row, model(input_ids=ids).text_embeds[0].numpy(), atol=1e-5)
    assert (embedder.info.kind, embedder.info.pooling, embedder.dimension) == ("clip", "projection", 12)


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token"])
def test_a_sentence_transformers_folder_pools_as_it_says(tmp_path, pooling):
    folder = sentence_folder(tmp_path / "encoder", pooling, max_seq_length=7)
    embedder = EncoderEmbedder(folder)
    found = embedder.embed(TEXTS)
    model = BertModel.from_pretrained(folder).eval()
    for text, row in zip(TEXTS, found, strict=True):
        ids = tokenizer()([text], return_tensors="pt", truncation=True, max_length=7)["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0]
        wanted = states[0] if pooling == "cls_token" else states.mean(0)
        assert np.allclose(row, wanted.numpy(), atol=1e-5)
    assert embedder.info.pooling == pooling.partition("_")[0]


def test_an_encoders_digest_follows_its_weights(tmp_path):
    first = EncoderEmbedder(sentence_folder(tmp_path / "a")).info
    assert EncoderEmbedder(sentence_folder(tmp_path / "b")).info.sha256 == first.sha256
    other = sentence_folder(tmp_path / "c")
    model = BertModel.from_pretrained(other)
    model.embeddings.word_embeddings.weight.data[0, 0] += 1
    model.save_pretrained(other)
    assert EncoderEmbedder(other).info.sha256 != first.sha256


def test_folders_that_are_no_encoder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="no encoder folder"):
        EncoderEmbedder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no config.json"):
        EncoderEmbedder(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="neither a CLIP checkpoint nor a sentence-transformers folder"):
        EncoderEmbedder(tmp_path / "empty")
    with pytest.raises(UsageError, match="pools by pooling_mode_max_tokens.*Mean and CLS"):
        EncoderEmbedder(sentence_folder(tmp_path / "max", "max_tokens"))
    folder = sentence_folder(tmp_path / "dense")
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="chains Transformer, Pooling, Dense"):
        EncoderEmbedder(folder)
    modules[2]["type"], modules[1]["path"] = "sentence_transformers.models.Normalize", "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InvalidArtifact, match="outside its folder"):
        EncoderEmbedder(folder)
    (folder / "modules.json").write_text("{")
    with pytest.raises(InvalidArtifact, match="modules.json cannot be read"):
        EncoderEmbedder(folder)


def test_weights_that_are_not_safetensors_are_refused(tmp_path):
    folder = clip_folder(tmp_path / "clip")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="holds neither model.safetensors nor"):
        EncoderEmbedder(folder)
