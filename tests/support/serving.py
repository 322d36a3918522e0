"""A server over an export, in this process."""

import contextlib
import io
import socket
import threading

import uvicorn
from fastapi.testclient import TestClient

from safetykit import OnnxVLM
from safetykit.serve.access import Keys
from safetykit.serve.app import application
from safetykit.serve.logs import Log
from safetykit.serve.options import ServeOptions
from safetykit.serve.service import Service

KEY = "a-key-of-the-tests-0123456789"
CHAT = "/v1/chat/completions"
TOKENS = 8


@contextlib.contextmanager
def serving(folder, *, keys=(), swaps=None, log=None, model=None, watched=(), **options):
    model = model or OnnxVLM.from_pretrained(folder)
    log = log or Log(io.StringIO())
    service = Service(model, "tiny", ServeOptions(max_new_tokens=16, **options), log, swaps, watched)
    with TestClient(application(service, Keys(keys)), raise_server_exceptions=False) as client:
        client.service = service
        yield client


@contextlib.contextmanager
def listening(folder, *, name="tiny", keys=(), change=None):
    """The address of a server over an export; ``change`` may spoil the model before."""
    model = OnnxVLM.from_pretrained(folder)
    if change:
        change(model)
    service = Service(model, name, ServeOptions(max_new_tokens=64), Log(io.StringIO()))
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
