"""What fails beyond a request: everybody is told, nothing more is accepted, and the process ends for another one."""

import io
import json
import socket
import threading
import time

import httpx2
import pytest
from serving import CHAT, body, is_refused, serving
from workshop import safetykit

from safetykit import OnnxVLM
from safetykit.serve.logs import Log


class Killed(BaseException):
    """No error of a request."""


def kill(*given, **named):
    raise Killed("secret path /home/x")


def test_the_end_of_the_thread_is_a_503_and_no_readiness(served, as_messages, answered, monkeypatch):
    log = io.StringIO()
    with serving(served, log=Log(log)) as client:
        assert client.get("/readyz").status_code == 200
        monkeypatch.setattr(client.service.model, "step", kill)
        for stream in (False, True):
            response = client.post(CHAT, json=body(as_messages(answered), stream=stream))
            if response.status_code == 503:
                is_refused(response, 503, None, "broken")
                assert int(response.headers["retry-after"]) >= 1
            assert "secret" not in response.text
        assert client.get("/readyz").status_code == 503 and client.get("/healthz").status_code == 200
        assert "safetykit_queue_rows 0.0" in client.get("/metrics").text
    (line,) = [one for one in map(json.loads, log.getvalue().splitlines()) if one["event"] == "broken"]
    assert line["reason"] == "Killed: secret path /home/x"


@pytest.mark.parametrize("stream", [False, True])
def test_the_process_ends_with_an_error(served, as_messages, answered, monkeypatch, stream):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(OnnxVLM, "step", kill)
    found = []

    def ask():
        sent = {**body(as_messages(answered)), "stream": stream}
        for _ in range(200):
            try:
                found.append(httpx2.post(f"http://127.0.0.1:{port}{CHAT}", json=sent, timeout=20))
                return
            except httpx2.ConnectError:
                time.sleep(0.05)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    done = safetykit("serve", served, "--port", port, "--name", "tiny")
    asking.join(20)
    assert done.code == 9 and "The thread that answers has failed" in done.err and "Traceback" not in done.err, done.err
    (response,) = found
    said = (
        response.json()
        if not stream
        else json.loads(response.text.split("data: ")[-1 if "[DONE]" not in response.text else -2])
    )
    assert said["error"]["code"] == "broken", response.text
