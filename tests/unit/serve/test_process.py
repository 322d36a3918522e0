"""A server in a process of its own, asked by the official client: stream, picture, refusal, 429, and its end."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from safetykit import OnnxVLM

KEY = "a-key-of-the-tests-0123456789"
TOKENS = 8


@contextlib.contextmanager
def started(served, *words):
    words = ["serve", served, "--name", "tiny", "--port", 0, "--max-new-tokens", 4000, *words, "--json"]
    command = [sys.executable, "-m", "safetykit.cli", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        lines = []
        for line in running.stdout:
            lines.append(line)
            if line == "}\n":
                break
        running.told = json.loads("".join(lines)) if lines else pytest.fail(running.stderr.read())
        running.log = []
        reader = threading.Thread(target=lambda: running.log.extend(running.stderr), daemon=True)
        reader.start()
        yield running
        running.kill()
        reader.join(5)


@pytest.fixture(scope="module")
def process(served, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# of the tests\n{KEY}\n")
    limits = ("--max-batch", 2, "--max-queue", 2, "--drain", 20, "--timeout", 60)
    with started(served, "--api-key-file", keys, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def client(process):
    """Asked as soon as the address is told: it waits until the server is up."""
    return openai.OpenAI(base_url=f"{process.told['url']}/v1", api_key=KEY, max_retries=0, timeout=60)


def test_headers_without_an_end_are_not_kept(process):
    host, port = process.told["url"].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as one, contextlib.suppress(ConnectionError):
        one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 2**20)
        assert one.recv(12) in (b"HTTP/1.1 400", b"")


def test_the_official_client_from_the_first_question_to_sigterm(process, client, served, as_messages, requests):
    assert process.told["model"] == "tiny" and process.told["keys"] == 1
    assert [one.id for one in client.models.list()] == ["tiny"]
    fields = {"model": "tiny", "max_tokens": TOKENS, "temperature": 0}
    answers = [OnnxVLM.from_pretrained(served).generate(one, TOKENS) for one in requests]
    for request, answer in zip(requests, answers, strict=True):
        whole = client.chat.completions.create(messages=as_messages(request), **fields)
        assert whole.choices[0].message.content == answer.text
        assert (whole.choices[0].finish_reason == "content_filter") == answer.refused == whole.safetykit["refused"]
        pieces = list(client.chat.completions.create(messages=as_messages(request), stream=True, **fields))
        assert "".join(one.choices[0].delta.content or "" for one in pieces) == answer.text
        assert pieces[0].safetykit["risk"] == pytest.approx(whole.safetykit["risk"], abs=1e-4)
    with pytest.raises(openai.BadRequestError, match="not supported") as caught:
        client.chat.completions.create(messages=as_messages(requests[0]), frequency_penalty=1, **fields)
    assert caught.value.param == "frequency_penalty" and caught.value.code == "unsupported_parameter"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()

    passed = next(one for one, answer in zip(requests, answers, strict=True) if not answer.refused)
    long = {**fields, "max_tokens": 4000, "messages": as_messages(passed), "temperature": 2.0}

    def ask(at):
        try:
            return client.chat.completions.create(**{**long, "max_tokens": 300, "seed": at}).usage.completion_tokens
        except openai.RateLimitError as error:
            assert int(error.response.headers["retry-after"]) >= 1
            return "429"

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(ask, range(10)))
    assert "429" in found and any(one != "429" for one in found)

    leaving = client.chat.completions.create(stream=True, **{**long, "seed": 2})
    next(iter(leaving))
    leaving.close()  # its row is let go of, long before 4,000 tokens
    deadline = time.monotonic() + 20
    while not any('"client_left"' in line for line in process.log) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any('"client_left"' in line for line in process.log), process.log

    last = client.chat.completions.create(stream=True, **{**long, "max_tokens": 200, "seed": 0, "temperature": 0})
    pieces = [next(last)]
    process.send_signal(signal.SIGTERM)
    pieces += list(last)
    assert pieces[-1].choices[0].finish_reason in ("stop", "length"), "what was accepted is answered"
    assert process.wait(20) == 0
    log = [json.loads(line) for line in process.log if line.startswith("{")]
    assert log[0]["event"] == "listening" and log[-1]["event"] == "ended"
    assert passed.prompt not in "".join(process.log)
    with socket.socket() as free:
        host, port = process.told["url"].removeprefix("http://").split(":")
        assert free.connect_ex((host, int(port))) != 0


@pytest.fixture(scope="module")
def endless(served, requests):
    """A request whose greedy answer is long."""
    model = OnnxVLM.from_pretrained(served)
    return next(one for one in requests if len(model.generate(one, 300).token_ids) == 300)


def test_what_is_not_answered_while_it_drains_is_told_so(served, as_messages, endless):
    with started(served, "--max-batch", 1, "--drain", 1, "--timeout", 5) as running:
        client = openai.OpenAI(base_url=f"{running.told['url']}/v1", api_key="none", max_retries=0, timeout=60)
        host, port = running.told["url"].removeprefix("http://").split(":")
        began = time.monotonic()
        with socket.create_connection((host, int(port)), timeout=30) as half:
            half.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ")
            assert half.recv(12) == b"" and 4 < time.monotonic() - began < 15, "headers have to come in time"
        long = {"model": "tiny", "max_tokens": 4000, "messages": as_messages(endless), "temperature": 0}

        def ask(at):
            try:
                given = client.chat.completions.create(**long, stream=at % 2 == 1)
                return sum(1 for _ in given) if at % 2 else given.usage.completion_tokens
            except openai.APIError as error:
                return error.code

        def ready():
            with pytest.raises(openai.InternalServerError) as caught:
                client.get("/../readyz", cast_to=object)
            return caught.value.status_code

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, at) for at in range(8)]  # one after the other
            time.sleep(0.7)
            running.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert ready() == 503, "it still listens, to say that it drains"
            with pytest.raises(openai.InternalServerError, match="shutting down"):
                client.chat.completions.create(**long)
            found = [one.result() for one in asked]
        assert running.wait(20) == 0
        assert "shutting_down" in found and all(one == "shutting_down" or isinstance(one, int) for one in found), found
        log = [json.loads(line) for line in running.log]
        assert log[-1]["event"] == "ended", "every line is one of the log"
        cut = [line for line in log if line["event"] == "request" and line.get("error") == "shutting_down"]
        assert len(cut) > found.count("shutting_down"), "each has its line, and the one that came too late"


def test_a_second_signal_ends_it_at_once(served, as_messages, endless):
    with started(served, "--max-batch", 8, "--drain", 60) as running:
        client = openai.OpenAI(base_url=f"{running.told['url']}/v1", api_key="none", max_retries=0, timeout=60)
        client.models.list()
        stream = client.chat.completions.create(
            model="tiny", max_tokens=4000, messages=as_messages(endless), temperature=0, stream=True
        )
        next(iter(stream))
        running.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        began = time.monotonic()
        running.send_signal(signal.SIGTERM)
        assert running.wait(20) == 0 and time.monotonic() - began < 5
