"""A server of a small export, what is asked of it, and what its answers must be."""

import contextlib
import io
import json
import socket
import threading

import pytest
import uvicorn
from starlette.testclient import TestClient

from safetykit import OnnxVLM
from safetykit.serve.access import Keys
from safetykit.serve.app import application
from safetykit.serve.logs import Log
from safetykit.serve.options import ServeOptions
from safetykit.serve.service import Service

KEY = "a-key-of-the-tests-0123456789"
CHAT = "/v1/chat/completions"
TOKENS = 8
# Correctors that have a strength.
SCALING = (
    ("GatedSteering", "decoder.layers.0", "all", "both"),
    ("SubspaceProjection", "decoder.layers.2", "all", "both"),
)


@contextlib.contextmanager
def serving(folder, *, keys=(), swaps=None, log=None, model=None, watched=(), plain=None, **options):
    model = model or OnnxVLM.from_pretrained(folder)
    log = log or Log(io.StringIO())
    service = Service(model, "tiny", ServeOptions(max_new_tokens=16, **options), log, swaps, watched, plain)
    with TestClient(application(service, Keys(keys)), "http://localhost", raise_server_exceptions=False) as client:
        client.service = service
        yield client


@contextlib.contextmanager
def listening(folder, *, name="tiny", keys=(), change=None, **options):
    """The address of a server over an export; ``change`` may spoil the model before."""
    model = OnnxVLM.from_pretrained(folder)
    if change:
        change(model)
    service = Service(model, name, ServeOptions(max_new_tokens=64, **options), Log(io.StringIO()))
    server = uvicorn.Server(uvicorn.Config(application(service, Keys(keys)), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(20)


def body(messages, **fields):
    return {"model": "tiny", "messages": messages, "max_tokens": TOKENS, "temperature": 0, **fields}


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def check(value, answer, threshold):
    """An answer over HTTP is that of `generate`."""
    (choice,) = value["choices"]
    assert choice["message"] == {"role": "assistant", "content": answer.text, "refusal": None}
    verdict = value["safetykit"]
    assert verdict["risk"] == pytest.approx(answer.scores["risk"] + threshold, abs=1e-4)
    assert verdict["threshold"] == threshold and verdict["refused"] == answer.refused and verdict["adapter"] == "on"
    assert value["usage"]["completion_tokens"] == len(answer.token_ids)
    assert value["usage"]["total_tokens"] == value["usage"]["prompt_tokens"] + len(answer.token_ids)
    reason = "content_filter" if answer.refused else "length" if len(answer.token_ids) == TOKENS else "stop"
    assert choice["finish_reason"] == reason


def is_refused(response, status, param, code):
    found = response.json()["error"]
    assert response.status_code == status, response.text
    assert (found["param"], found["code"]) == (param, code), found
    assert found["message"] and found["type"].endswith("_error")
