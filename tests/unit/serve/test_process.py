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


@pytest.fixture(scope="module")
def process(served, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"# of the tests\n{KEY}\n")
    words = ["serve", served, "--name", "tiny", "--port", 0, "--api-key-file", keys, "--max-batch", 2, "--max-queue", 2]
    words += ["--max-new-tokens", 4000, "--drain", 20, "--timeout", 60, "--json"]
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
