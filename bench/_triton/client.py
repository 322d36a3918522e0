"""Asks a Triton server chat requests with ``tritonclient``, in the environment of the server: no safetykit is needed.

    python client.py http|grpc|stream ADDRESS CLIENTS < requests.jsonl > answers.jsonl

A line in is ``{"request": text, "picture": base64 or null}``; a line out, in the same order, ``{"response": …}`` or
``{"error": message, "status": code}``, and ``seconds``. ``stream`` asks ``chat_stream`` by gRPC and joins the pieces.
"""

import base64
import json
import queue
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import local

import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

TIMEOUT = 120  # seconds


def tensors(kind, asked):
    """The inputs of a request."""
    files = {"request": asked["request"].encode(), "picture": asked["picture"] and base64.b64decode(asked["picture"])}
    made = []
    for name, data in files.items():
        if data is not None:
            made.append(kind.InferInput(name, [1], "BYTES"))
            made[-1].set_data_from_numpy(np.array([data], np.object_))
    return made


def whole(kind, client, asked):
    """An answer of `chat`."""
    made = client.infer("chat", tensors(kind, asked))
    return json.loads(made.as_numpy("response")[0])


def streamed(client, asked):
    """An answer of `chat_stream`, its pieces joined, and how many there were."""
    pieces, found = queue.Queue(), []
    client.start_stream(lambda result, error: pieces.put((result, error)))
    try:
        client.async_stream_infer("chat_stream", tensors(tritonclient.grpc, asked), enable_empty_final_response=True)
        while True:
            result, error = pieces.get(timeout=TIMEOUT)
            if error:
                raise error
            data = result.as_numpy("response")
            if data is not None:
                found.append(json.loads(data[0]))
            if result.get_response().parameters["triton_final_response"].bool_param:
                break
    finally:
        client.stop_stream()
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in found)
    choice = {**found[-1]["choices"][0], "message": {"content": text}}
    return {**found[-1], "choices": [choice], "pieces": len(found)}


def main(how, address, clients):
    """Answer the lines."""
    kind, own = tritonclient.http if how == "http" else tritonclient.grpc, local()
    more = {"network_timeout": TIMEOUT, "connection_timeout": TIMEOUT} if how == "http" else {}

    def answer(line):
        if not hasattr(own, "client"):
            own.client = kind.InferenceServerClient(address, **more)
        began = time.perf_counter()
        try:
            asked = json.loads(line)
            found = streamed(own.client, asked) if how == "stream" else whole(kind, own.client, asked)
            told = {"response": found}
        except InferenceServerException as error:
            told = {"error": error.message(), "status": str(error.status())}
        except OSError as error:  # nobody listens
            told = {"error": str(error), "status": "unreachable"}
        return {**told, "seconds": time.perf_counter() - began}

    with ThreadPoolExecutor(clients) as pool:
        for one in pool.map(answer, sys.stdin):
            print(json.dumps(one), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
