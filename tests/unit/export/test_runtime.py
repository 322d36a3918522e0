"""What someone who generates with an export relies on."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from safetykit import cli
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime import sessions
from safetykit.export.runtime.answer import answer
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sampling import Sampler
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.toolkit.model.generating import Sampling
from safetykit.toolkit.model.requests import Generation, Request


@pytest.fixture(scope="module")
def bare(base_folder) -> OnnxVLM:
    return OnnxVLM.from_pretrained(base_folder)


@pytest.fixture(scope="module")
def adapted(base_folder, make_adapter, tmp_path_factory):
    """An export with the supervised op, which needs two passes, and its adapter."""
    folder = tmp_path_factory.mktemp("adapted")
    base = read_manifest(base_folder)
    copy_base(base_folder, folder, base)
    adapter = make_adapter(
        ("SupervisedSteering", "decoder.layers.0", "last", "prefill"),
        ("SubspaceProjection", "projector", "all", "both"),
    )
    adapt(folder, base, [adapter])
    return OnnxVLM.from_pretrained(folder), adapter


def test_answers_equal_pytorch(vlm, bare, requests):
    ours, theirs = vlm.generate(requests, 12), bare.generate(requests, 12)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    assert [one.text for one in ours] == [one.text for one in theirs]


def test_answers_and_scores_equal_pytorch_with_a_two_pass_adapter(vlm, adapted, requests):
    onnx_vlm, adapter = adapted
    with vlm.applied(adapter):
        ours = vlm.generate(requests, 12)
    theirs = onnx_vlm.generate(requests, 12)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    assert theirs[0].scores.keys() == {"0.score"}
    for one, other in zip(ours, theirs, strict=True):
        assert one.scores["0.score"] == pytest.approx(other.scores["0.score"], abs=1e-4)


def test_a_batch_answers_like_its_rows_alone(adapted, requests):
    onnx_vlm, _ = adapted
    together = onnx_vlm.generate(requests, 8)
    alone = [onnx_vlm.generate([request], 8)[0] for request in requests]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]


def test_a_row_that_ended_stays_ended(bare, requests, monkeypatch):
    free = [one.token_ids for one in bare.generate(requests, 8)]
    stop = free[0][2]
    monkeypatch.setattr(bare.inputs, "eos_token_ids", (*bare.inputs.eos_token_ids, stop))
    for cut, whole in zip(bare.generate(requests, 8), free, strict=True):
        assert cut.token_ids == (whole[: whole.index(stop)] if stop in whole else whole)


def test_no_more_tokens_than_asked_for(bare, requests):
    assert all(len(one.token_ids) <= 3 for one in bare.generate(requests, 3))


def test_sampling_repeats_with_its_seed_and_differs_without(bare, requests):
    first, again, other = (bare.generate(requests, 8, do_sample=True, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_tiny_nucleus_is_greedy(bare, requests):
    assert bare.generate(requests, 6, do_sample=True, top_p=1e-6) == bare.generate(requests, 6)


@pytest.mark.parametrize("temperature", [1e-12, 1e-308, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature):
    logits = np.array([[3.0, -2.0, 1e4, 1e4 - 1], [0.0, 7.0, 7.0 - 1e-3, -1e4]], np.float32)
    drawn = Sampler(Sampling(do_sample=True, temperature=temperature)).choose(logits)
    assert drawn.tolist() == logits.argmax(axis=-1).tolist()


def test_draws_follow_the_probabilities():
    sampler = Sampler(Sampling(do_sample=True, top_p=0.85, seed=0))
    logits = np.log(np.tile([0.6, 0.3, 0.08, 0.02], (20_000, 1)))
    counts = np.bincount(sampler.choose(logits), minlength=4) / 20_000
    assert counts == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.02)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_sampling_out_of_range_is_refused(options):
    with pytest.raises(UsageError, match="out of range"):
        Sampler(Sampling(do_sample=True, **options))


def test_the_two_pass_op_asks_for_its_second_input(adapted, requests):
    onnx_vlm, _ = adapted
    with pytest.raises(UsageError, match="text-only branch"):
        onnx_vlm.prefill(onnx_vlm.inputs.prepare(requests))


def test_a_picture_without_enough_image_tokens_is_refused(bare, requests):
    inputs = bare.inputs.prepare(requests[:1])
    inputs.vision_mask[0, np.flatnonzero(inputs.vision_mask[0])[0]] = False
    with pytest.raises(UsageError, match="3 image tokens, the pictures give 4"):
        bare.prefill(inputs)


def test_a_provider_that_is_not_there_is_an_error(base_folder):
    with pytest.raises(UsageError, match="does not give CUDAExecutionProvider") as caught:
        OnnxVLM.from_pretrained(base_folder, ("CUDAExecutionProvider",))
    assert caught.value.exit_code == 2


def test_a_silent_fall_back_is_an_error(base_folder, monkeypatch):
    """The provider is compiled in, but the session does not get it."""
    import onnxruntime

    available = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    with pytest.raises(UsageError, match="does not give CUDAExecutionProvider"):
        sessions.open_session(base_folder / "embed_tokens.onnx", ("CUDAExecutionProvider", "CPUExecutionProvider"))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"onnxruntime": "1", "onnxruntime-gpu": "1"}, "onnxruntime and onnxruntime-gpu are both installed"),
        ({}, "needs ONNX Runtime, which is not installed. pip install .safetykit.cpu."),
    ],
)
def test_none_or_two_onnx_runtimes_are_refused(monkeypatch, found, message):
    monkeypatch.setattr(sessions, "installed_packages", lambda: found)
    with pytest.raises(UsageError, match=message) as caught:
        sessions.require_one_package()
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    (tmp_path / "decoder.onnx").write_bytes(b"nonsense")
    with pytest.raises(InvalidArtifact, match="cannot load"):
        sessions.open_session(tmp_path / "decoder.onnx")


def test_the_runtime_does_not_import_torch():
    code = "import sys, safetykit.export.runtime.answer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_request_is_all_it_takes(bare):
    (answer,) = bare.generate([Request("describe it .")], 4)
    assert isinstance(answer.text, str)


def test_a_single_prompt_may_have_several_pictures(vlm, base_folder, tmp_path):
    from safetykit.export.runtime.answer import answer

    pictures = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (40, 200)]
    paths = [tmp_path / f"{at}.png" for at in range(2)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    prompt = "what is in the picture ?"
    (found,) = answer(base_folder, [prompt], paths, max_new_tokens=4)
    assert found["text"] == vlm.generate([Request(prompt, tuple(pictures))], 4)[0].text
    with pytest.raises(UsageError, match="2 pictures for 3 prompts"):
        answer(base_folder, [prompt] * 3, paths)


def test_a_system_prompt_is_a_turn_of_its_own_and_no_begun_answer(base_folder, monkeypatch):
    from safetykit.export.runtime import answer as module

    asked = []
    monkeypatch.setattr(
        module.OnnxVLM, "generate", lambda self, requests, *_, **__: asked.extend(requests) or [Generation("", ())]
    )
    module.answer(base_folder, ["describe it ."], [], system="it is dangerous")
    assert asked == [Request("describe it .", system="it is dangerous")]


def test_a_prompt_that_cannot_be_answered_leaves_the_others_alone(base_folder, capsys):
    """The others' answers stand, and the command ends with the code of the error."""
    (good,) = answer(base_folder, ["what is it ?"], [], max_new_tokens=2)
    words = ["run", str(base_folder), "--json", "--max-new-tokens", "2", "--max-prompt-tokens", "9"]
    prompts = ["what is it ?", "what " * 9, "what is it ?"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, *(word for prompt in prompts for word in ("--prompt", prompt))])
    told = capsys.readouterr()
    first, failed, last = json.loads(told.out)
    assert ended.value.code == failed["error"]["exit_code"] == 2 and first == last == good
    assert "more than the 9 tokens" in failed["error"]["message"] and failed["error"]["message"] in told.err
    with pytest.raises(UsageError, match="^The prompt has 11 tokens"):
        answer(base_folder, prompts[1:2], [], max_prompt_tokens=9)


def test_one_picture_that_cannot_be_read_fails_alone(base_folder, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "good.png")
    found = answer(base_folder, ["what", "what"], [tmp_path / "good.png", tmp_path / "none.png"], max_new_tokens=1)
    assert "text" in found[0] and "no picture" in found[1]["error"]["message"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0])
def test_a_temperature_that_is_none_is_refused(bare, base_folder, wrong):
    with pytest.raises(UsageError, match="out of range"):
        bare.generate("what", 1, do_sample=True, temperature=wrong)
    with pytest.raises(UsageError, match="out of range"):
        answer(base_folder, ["what"], [], temperature=wrong)
    with pytest.raises(UsageError, match="out of range"):
        bare.generate("what", 1, top_p=float("nan"))
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(base_folder), "--prompt", "what", "--temperature", str(wrong)])
    assert ended.value.code == 2


class Recorder:
    """A streamer that keeps what it gets."""

    def __init__(self):
        self.calls, self.ended = [], 0

    def put(self, value):
        self.calls.append(value.tolist())

    def end(self):
        self.ended += 1


@pytest.mark.parametrize("form", [0, 1])
def test_every_form_of_a_request_is_answered_alike(bare, requests, form):
    request = requests[form]
    parts = [{"type": "image", "image": np.asarray(one)} for one in request.pictures]
    chat = [{"role": "user", "content": [*parts, {"type": "text", "text": request.prompt}]}]
    (wanted,) = bare.generate([request], 6)
    assert bare.generate(request, 6) == bare.generate(chat, 6) == bare.generate([chat], 6)[0] == wanted
    if not parts:
        assert bare.generate(request.prompt, 6) == wanted


def test_both_stream_the_prompt_and_the_answer(vlm, bare, requests):
    ours, theirs = Recorder(), Recorder()
    answer = bare.generate(requests[0], 8, streamer=ours)
    vlm.generate(requests[0], 8, streamer=theirs)
    assert ours.calls == theirs.calls
    assert [token for (token,) in ours.calls[1:]] == list(answer.token_ids)
    assert (ours.ended, theirs.ended) == (1, 1)
    with pytest.raises(UsageError, match="4 answers cannot go to one streamer"):
        bare.generate(requests, 8, streamer=ours)


@pytest.mark.parametrize("threshold", [-1e6, 1e6])
def test_nothing_of_a_refused_answer_is_streamed(vlm, base_folder, make_detector, requests, tmp_path, threshold):
    base = read_manifest(base_folder)
    copy_base(base_folder, tmp_path, base)
    adapter = make_detector(threshold=threshold)
    adapt(tmp_path, base, [adapter])
    onnx_vlm = OnnxVLM.from_pretrained(tmp_path)
    ours, theirs = Recorder(), Recorder()
    answer = onnx_vlm.generate(requests[0], 5, streamer=ours)
    with vlm.applied(adapter):
        assert vlm.generate(requests[0], 5, streamer=theirs).token_ids == answer.token_ids
    assert answer.refused == (threshold < 0)
    assert ours.calls == theirs.calls
    assert [token for (token,) in ours.calls[1:]] == list(answer.token_ids)
    assert (ours.ended, theirs.ended) == (1, 1)


def test_representations_say_what_matters(bare, adapted):
    onnx_vlm, adapter = adapted
    assert repr(bare).endswith("LlavaForConditionalGeneration, fp32, base, no adapter, CPUExecutionProvider)")
    assert ", bake, test, CPU" in repr(onnx_vlm)
    assert repr(adapter).startswith(
        "Adapter(test (test): SupervisedSteering at decoder.layers.0, SubspaceProjection at projector; fitted on Llava"
    )
