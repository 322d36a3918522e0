"""The Triton repository answers chat requests by itself: token for token and verdict for verdict as safetykit does."""

import base64
import dataclasses
import io
import itertools
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from fake_triton import FakeServer, TritonError
from shared import once

from safetykit import OnnxVLM
from safetykit.bench._triton.server import ENVIRONMENT, installed, served, with_stand_ins
from safetykit.export.layouts.arrange import arrange
from safetykit.export.layouts.describe import write_interface
from safetykit.export.layouts.runtimes.triton import CHAT, REPOSITORY, STREAM
from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.export.surgery.adapt import adapt, copy_base

TOKENS = 6
CLIENT = Path(installed.__code__.co_filename).with_name("client.py")


@pytest.fixture(scope="session")
def export(vlm, base_folder, make_adapter, make_probe, split_risks, requests, tmp_path_factory):
    """An export of the layout with a gate that holds and a detector that refuses some of ``requests``."""

    def make(folder):
        folder.mkdir()
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        probe, refused = split_risks(make_probe(), requests)
        assert 0 < sum(refused) < len(refused)
        gated = make_adapter(("GatedSteering", "decoder.layers.1", "last", "both"))
        held = tuple(dataclasses.replace(item, gate="held") for item in gated.interventions)
        manifest = adapt(folder, base, [dataclasses.replace(gated, interventions=held), probe], gate_state="inputs")
        manifest = arrange(folder, manifest, "triton")
        assert write_interface(folder, manifest, vlm.inputs).no_program is None
        write_manifest(manifest, folder)

    return once(tmp_path_factory, "triton-chat", make)


@pytest.fixture(scope="module")
def repository(export, tmp_path_factory):
    return with_stand_ins(export, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture(scope="module")
def configs(triton_schema, repository):
    return configs_of(triton_schema, repository)


def configs_of(schema, repository):
    from google.protobuf import json_format, text_format

    read = {
        path.parent.name: text_format.Parse(path.read_text(), schema.ModelConfig())
        for path in repository.glob("*/config.pbtxt")
    }
    return {
        name: json_format.MessageToDict(one, preserving_proto_field_name=True) | {"max_batch_size": one.max_batch_size}
        for name, one in read.items()
    }


@pytest.fixture
def start(repository, configs, monkeypatch):
    """``start(**settings)``: a server of the repository, its models' settings changed."""
    servers = []

    def run(repository=repository, **settings):
        changed = json.loads(json.dumps(configs))
        for name in (CHAT, STREAM):
            changed[name]["parameters"] |= {key: {"string_value": str(one)} for key, one in settings.items()}
        servers.append(FakeServer(repository, changed, monkeypatch))
        return servers[-1]

    yield run
    for one in servers:
        one.close()


@pytest.fixture(scope="module")
def expected(export, requests):
    model = OnnxVLM.from_pretrained(export)
    answers = [model.generate(one, TOKENS) for one in requests]
    assert {one.refused for one in answers} == {True, False}
    return answers, model.detector


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def asking(prompt, picture=None, **fields):
    """The bytes of a request, its picture in the message."""
    content = prompt
    if picture is not None:
        url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": prompt}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": TOKENS}
    return json.dumps({**body, **fields}).encode()


def said(sender):
    return [json.loads(one.tensors[0].as_numpy()[0]) for one in sender.responses]


def failure(sender):
    (made,) = sender.responses
    return made.error().code(), made.error().message()


def require_same(value, answer, detector):
    text = value["choices"][0]["message"]["content"]
    verdict = value["safetykit"]
    assert (text, verdict["refused"]) == (answer.text, answer.refused)
    assert verdict["threshold"] == detector.threshold and verdict["adapter"] == "on"
    assert verdict["risk"] == pytest.approx(answer.scores["risk"] + detector.threshold, abs=1e-5)
    assert verdict["gates"] == pytest.approx({k: v for k, v in answer.scores.items() if k != "risk"}, abs=1e-5)
    assert value["usage"]["completion_tokens"] == len(answer.token_ids)
    reasons = ("content_filter",) if answer.refused else ("stop", "length")
    assert value["choices"][0]["finish_reason"] in reasons


def test_answers_refusals_and_risks_are_safetykits(start, requests, expected):
    server, (answers, detector) = start(), expected
    for request, answer in zip(requests, answers, strict=True):
        picture = png(request.pictures[0]) if request.pictures else None
        (value,) = said(server.ask(CHAT, request=asking(request.prompt, picture)))
        assert value["object"] == "chat.completion"
        require_same(value, answer, detector)
        files = {"picture": picture} if picture else {}
        (attached,) = said(server.ask(CHAT, request=asking(request.prompt), **files))
        assert attached["choices"] == value["choices"] and attached["safetykit"] == value["safetykit"]


def test_a_stream_is_the_same_answer_in_pieces(start, requests, expected):
    server, (answers, detector) = start(), expected
    request, answer = next((one, two) for one, two in zip(requests, answers, strict=True) if not two.refused)
    files = {"picture": png(request.pictures[0])} if request.pictures else {}
    pieces = said(server.ask(STREAM, request=asking(request.prompt), **files))
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant" and pieces[0]["safetykit"]["refused"] is False
    assert len(pieces) > 3 and {one["object"] for one in pieces} == {"chat.completion.chunk"}
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    require_same(
        {**pieces[-1], "choices": [{**pieces[-1]["choices"][0], "message": {"content": text}}]}, answer, detector
    )


def test_nothing_is_decoded_for_what_is_refused_or_for_a_client_that_left(start, requests, expected):
    server, (answers, _) = start(), expected
    by = {two.refused: one for one, two in zip(requests, answers, strict=True) if not one.pictures}
    server.ask(CHAT, request=asking(by[True].prompt)) if True in by else None
    assert server.calls.count("decoder") == (True in by)
    request = next(one for one, two in zip(requests, answers, strict=True) if not two.refused)
    files = {"picture": png(request.pictures[0])} if request.pictures else {}
    server.calls.clear()
    sender = server.ask(STREAM, leaves_after=1, request=asking(request.prompt), **files)
    assert failure_of_last(sender) == "cancelled: the client left." and server.calls.count("decoder") < TOKENS


def failure_of_last(sender):
    return sender.responses[-1].error().message()


def test_an_answer_ends_at_a_stop_text_or_its_limit(start, requests, expected):
    server, (answers, _) = start(max_new_tokens=4), expected
    request, answer = next((one, two) for one, two in zip(requests, answers, strict=True) if len(two.token_ids) > 2)
    files = {"picture": png(request.pictures[0])} if request.pictures else {}
    (short,) = said(server.ask(CHAT, request=asking(request.prompt, max_tokens=2), **files))
    assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (2, "length")
    (unlimited,) = said(server.ask(CHAT, request=asking(request.prompt, max_tokens=None), **files))
    assert unlimited["usage"]["completion_tokens"] <= 4
    word = answer.text.split()[1]
    (stopped,) = said(server.ask(CHAT, request=asking(request.prompt, max_tokens=4, stop=word), **files))
    assert word not in stopped["choices"][0]["message"]["content"]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_a_seed_draws_what_it_draws_elsewhere(start, export, requests, expected):
    server, (answers, _), model = start(), expected, OnnxVLM.from_pretrained(export)
    asked = [(one, two) for one, two in zip(requests, answers, strict=True) if not two.refused]
    for (request, greedy), seed, top_p in itertools.product(asked, (3, 4, -1), (1, 0.6)):
        picture = png(request.pictures[0]) if request.pictures else None
        drawn = {"top_p": top_p, "temperature": 1.5}
        (value,) = said(server.ask(CHAT, request=asking(request.prompt, picture, **drawn, seed=seed)))
        there = model.generate(request, TOKENS, do_sample=True, **drawn, seed=seed % 2**32)
        assert value["choices"][0]["message"]["content"] == there.text
        (again,) = said(server.ask(CHAT, request=asking(request.prompt, picture, top_p=top_p, seed=seed)))
        assert again["choices"][0]["message"]["content"] == greedy.text
    request, greedy = asked[0]
    files = {"picture": png(request.pictures[0])} if request.pictures else {}
    hot = [said(server.ask(CHAT, request=asking(request.prompt, temperature=2), **files)) for _ in range(4)]
    assert len({one["choices"][0]["message"]["content"] for (one,) in hot}) > 1, "without a seed draws differ"


PARTS = [{"type": "text", "text": "what is this ?"}]
WRONG = {
    "no JSON": (b"{", "invalid_json"),
    "no UTF-8": (b"\xff\xfe", "invalid_json"),
    "no object": (b"[]", "invalid_json"),
    "deep nesting": (b"[" * 100_000, "invalid_json"),
    "half a surrogate pair": (rb'{"messages": [{"role": "user", "content": "\ud83d"}]}', "invalid_json"),
    "too many bytes": (b" " * (2**25 + 1), "invalid_json"),
    "an unknown field": (asking("what ?", tools=[]), "unsupported_parameter: tools"),
    "a temperature that is none": (asking("what ?", temperature=2.1), "invalid_value: temperature"),
    "a temperature in words": (asking("what ?", temperature="hot"), "invalid_value: temperature"),
    "no probability": (asking("what ?", top_p=0), "invalid_value: top_p"),
    "half a seed": (asking("what ?", seed=0.5), "invalid_value: seed"),
    "a seed beyond": (asking("what ?", seed=2**63), "invalid_value: seed"),
    "several answers": (asking("what ?", n=2), "unsupported_parameter: n: only 1"),
    "another model": (asking("what ?", model="gpt"), "model_not_found"),
    "too many tokens": (asking("what ?", max_tokens=513), "invalid_value: max_tokens"),
    "no number": (asking("what ?", max_tokens=True), "invalid_value: max_tokens"),
    "two limits": (asking("what ?", max_completion_tokens=3), "says something else"),
    "an empty stop": (asking("what ?", stop=""), "invalid_value: stop"),
    "no messages": (asking("what ?", messages=[]), "invalid_value: messages"),
    "a history": (asking("what ?", messages=[{"role": "user", "content": "a"}] * 2), "invalid_value: messages"),
    "a system prompt": (asking("what ?", messages=[{"role": "system", "content": "a"}]), "invalid_value: messages"),
    "no text": (asking([]), "invalid_value: messages.0.content"),
    "the picture last": (asking([*PARTS, {"type": "image_url", "image_url": {"url": "a"}}]), "messages.0.content"),
    "blanks": (asking(" \n"), "invalid_value: messages.0.content: it asks nothing"),
    "an address": (
        asking([{"type": "image_url", "image_url": {"url": "http://a/b.png"}}, *PARTS]),
        "invalid_image_url",
    ),
    "no base64": (asking([{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}, *PARTS]), "base64"),
    "no picture": (asking("what ?", b"%!PS"), "invalid_image: picture: cannot identify image file of the request."),
    "a long prompt": (asking("what " * 3000), "invalid_prompt: messages: The prompt has"),
}


def test_a_request_that_cannot_be_answered_fails_alone_and_says_why(start):
    server = start()
    good = said(server.ask(CHAT, request=asking("what is this ?")))[0]["choices"]
    for name, (request, words) in WRONG.items():
        code, message = failure(server.ask(CHAT, request=request))
        assert code == TritonError.INVALID_ARG and words in message, (name, message)
        if name in ("no JSON", "a long prompt"):
            assert failure(server.ask(STREAM, request=request)) == (code, message)
    code, message = failure(server.ask(CHAT, request=asking("what ?", b"x"), picture=b"y"))
    assert code == TritonError.INVALID_ARG and "too_many_images" in message
    assert said(server.ask(CHAT, request=asking("what is this ?")))[0]["choices"] == good and not server.log
    harmless = asking("what is this ?", user="me", temperature=0, n=1, stream=False, model="chat")
    assert said(server.ask(CHAT, request=harmless))[0]["choices"] == good


def test_a_fault_of_a_graph_is_logged_and_concerns_its_request_alone(start):
    server = start()
    decoder, served = server.models["decoder"], server.models["decoder"].session
    decoder.session = None
    code, message = failure(server.ask(CHAT, request=asking("what is this ?")))
    assert (code, message) == (TritonError.INTERNAL, "internal_error: the log says why.")
    assert "decoder" in server.log[0]
    decoder.session = served
    assert said(server.ask(CHAT, request=asking("what is this ?")))


def test_a_queue_that_is_full_refuses(start):
    server, gate = start(parallel=1, max_queue=1), threading.Event()
    model = server.models[CHAT].model
    follow, model.follow = model.follow, lambda *asked: (gate.wait(30), follow(*asked))[1]
    first, second = (server.send(CHAT, request=asking("what is this ?")) for _ in range(2))
    code, message = failure(server.ask(CHAT, request=asking("what is this ?")))
    assert code == TritonError.UNAVAILABLE and "queue_full" in message
    gate.set()
    for one in (first, second):
        assert one.done.wait(30) and said(one)


def test_a_damaged_file_is_refused_when_the_model_is_loaded(start, export, tmp_path):
    repository = with_stand_ins(export, tmp_path / "repository")
    with (repository / CHAT / "1" / "tokenizer.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(Exception, match="tokenizer.json is not the file"):
        start(repository)


def test_each_chat_model_is_whole_by_itself_and_named_by_the_manifest(export):
    manifest = read_manifest(export)
    for name in (CHAT, STREAM):
        files = sorted(path.name for path in (export / REPOSITORY / name / "1").iterdir())
        assert files == ["drawing.py", "growing_text.py", "io.json", "model.py", "run_ort.py", "tokenizer.json"]
        assert all(f"{REPOSITORY}/{name}/1/{file}" in manifest.files for file in files)
    assert json.loads((export / "io.json").read_text())["program"] == "run_ort.py"


@pytest.mark.skipif(ENVIRONMENT not in os.environ, reason=f"{ENVIRONMENT} names no Python with nvidia-pytriton")
def test_the_real_server_gives_the_same(repository, tmp_path, requests, expected):
    found, (answers, detector) = installed(Path(os.environ[ENVIRONMENT])), expected
    lines = []
    for request in requests:
        picture = base64.b64encode(png(request.pictures[0])).decode() if request.pictures else None
        lines.append({"request": asking(request.prompt).decode(), "picture": picture})
    bad = [{"request": "{", "picture": None}]
    with served(found, repository, tmp_path) as server:
        for how in ("http", "grpc", "stream"):
            text = "".join(json.dumps(one) + "\n" for one in (*lines, *bad))
            address = server.http if how == "http" else server.grpc
            command = [found.python, CLIENT, how, address, "2"]
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
            *good, failed = map(json.loads, done.stdout.splitlines())
            for one, answer in zip(good, answers, strict=True):
                require_same(one["response"], answer, detector)
            assert "invalid_json" in failed["error"]
