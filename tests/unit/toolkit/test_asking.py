"""Answers to every form of a request, and models that were loaded elsewhere."""

import numpy as np
import pytest
from asking import PICTURE, TALK, encoded, image, text, user

import safetykit
from safetykit import VLM, Generation, Request, UsageError, load_records
from safetykit.toolkit.model.chat import as_request

# --- answers


def test_every_form_gets_the_answer_of_the_request(random_vlm, saved):
    plain = random_vlm.generate([Request("what is this ?", PICTURE), Request("tell me")], 6)
    assert isinstance(plain, list)
    seen = [
        Request("what is this ?", saved),
        Request("what is this ?", encoded()),
        [user([image(np.asarray(PICTURE)), text("what is this ?")])],
    ]
    for form in seen:
        answer = random_vlm.generate(form, 6)
        assert isinstance(answer, Generation)
        assert answer == random_vlm.generate([Request("what is this ?", PICTURE)], 6)[0]
    assert random_vlm.generate("tell me", 6) == random_vlm.generate([Request("tell me")], 6)[0]
    assert [one.token_ids for one in random_vlm.generate([seen[0], "tell me"], 6)] == [one.token_ids for one in plain]


def test_a_longer_conversation_is_answered_as_transformers_would(random_vlm):
    import torch

    answer = random_vlm.generate(TALK, 6)
    processor = random_vlm.inputs.processor
    batch = processor.apply_chat_template(
        [{**one, "content": [text(one["content"])]} for one in TALK],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = random_vlm.model.generate(**batch, max_new_tokens=6, do_sample=False, pad_token_id=0)
    theirs = output[0, batch["input_ids"].shape[1] :].tolist()
    ends = random_vlm.inputs.eos_token_ids
    assert list(answer.token_ids) == [token for token in theirs if token not in ends]


class Recorder:
    def __init__(self):
        self.calls, self.ended = [], 0

    def put(self, value):
        assert not self.ended
        self.calls.append(value.tolist())

    def end(self):
        self.ended += 1


def test_a_streamer_gets_the_prompt_and_then_the_answer(random_vlm):
    stream = Recorder()
    answer = random_vlm.generate("tell me", 6, streamer=stream)
    prompt, *tokens = stream.calls
    assert prompt == random_vlm.inputs.prepare([Request("tell me")]).input_ids.tolist()
    assert [token for step in tokens for token in step] == list(answer.token_ids)
    assert stream.ended == 1
    with pytest.raises(UsageError, match="2 answers cannot go to one streamer"):
        random_vlm.generate(["tell me", "what ?"], 6, streamer=stream)


# --- models


def test_a_loaded_model_and_processor_are_a_vlm(random_checkpoint, random_vlm):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(random_checkpoint)
    vlm = VLM(model, AutoProcessor.from_pretrained(random_checkpoint, backend="pil"))
    assert vlm.path == random_checkpoint
    assert vlm.base == random_vlm.base
    asked = [Request("what is this ?", PICTURE), "tell me"]
    assert vlm.generate(asked, 6) == random_vlm.generate(asked, 6)


def test_a_model_from_nowhere_answers_but_has_no_fingerprint(random_vlm):
    from safetykit.toolkit.reference.model import build_model

    vlm = VLM(build_model(seed=1), random_vlm.inputs.processor)
    assert vlm.generate("tell me", 6) == random_vlm.generate("tell me", 6)
    assert "in memory" in repr(vlm)
    with pytest.raises(UsageError, match="not loaded from a local folder.*save_pretrained"):
        _ = vlm.fingerprint


def test_a_model_with_peft_adapters_is_refused(random_checkpoint, random_vlm):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(random_checkpoint)
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(UsageError, match="PEFT adapters.*merge_and_unload"):
        VLM(wrapped, random_vlm.inputs.processor)


def test_a_processor_without_pictures_is_refused(random_vlm):
    with pytest.raises(UsageError, match="no processor for text and pictures"):
        VLM(random_vlm.model, random_vlm.inputs.tokenizer)


def test_short_names_and_string_paths():
    vlm = VLM.from_pretrained("reference:mild")
    assert vlm.path == safetykit.reference_path("mild")
    assert load_records("reference") == load_records(str(safetykit.records_path("fit").parent))
    with pytest.raises(UsageError, match="no model folder at reference:mid.*reference:mild"):
        VLM.from_pretrained("reference:mid")


# --- what people see


def test_representations_say_what_matters(random_vlm):
    assert (
        repr(Request("what ?", [PICTURE, PICTURE], system="x")) == "Request('what ?', image=40x32 + 40x32, system='x')"
    )
    assert repr(as_request(TALK)) == "Request('is it dangerous ?', turns=3)"
    assert repr(Generation("no .", (1, 2), {"risk": 1.25}, True)) == "Generation('no .', 2 tokens, risk=1.25, refused)"
    assert repr(random_vlm).endswith("LlavaForConditionalGeneration, 8 layers of width 128, float32 on cpu)")
    (first, *_) = load_records("reference", ["test"])
    assert repr(first).startswith(f"Record({first.id!r}, {first.label}, {first.carrier}, test, ")
    assert len(repr(first)) < 160


def test_the_public_names_exist_and_a_wrong_one_gets_a_hint():
    for name in safetykit.__all__:
        assert getattr(safetykit, name) is not None
    with pytest.raises(AttributeError, match="Did you mean 'Request'"):
        _ = safetykit.Reqest
    with pytest.raises(AttributeError, match="Did you mean 'VLMGuard'"):
        _ = safetykit.VlmGuard
    with pytest.raises(AttributeError, match="It has Adapter, "):
        _ = safetykit.zzz
