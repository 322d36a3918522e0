"""Triton's model `chat`: whole answers to chat requests, for clients that take one response for a request.

`request` and `picture` go to the model `chat_stream`, whose pieces become one JSON object `chat.completion`.
"""

import json
from threading import Thread

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Waits for each answer in a thread of its own; `chat_stream` says how many there may be."""

    def execute(self, requests):
        for request in requests:
            inputs = [pb_utils.get_input_tensor_by_name(request, name) for name in ("request", "picture")]
            asked = pb_utils.InferenceRequest(
                model_name="chat_stream",
                requested_output_names=["response"],
                inputs=[pb_utils.Tensor(one.name(), one.as_numpy()) for one in inputs if one is not None],
                request_id=request.request_id(),
            )
            Thread(target=answer, args=(asked, request.get_response_sender()), daemon=True).start()


def answer(asked, sender):
    """Send the whole answer, or why there is none."""
    try:
        pieces = []
        for part in asked.exec(decoupled=True):
            if part.has_error():
                raise Failed(part.error())
            pieces += [json.loads(one.as_numpy().reshape(-1)[0]) for one in part.output_tensors()]
        data = json.dumps(joined(pieces), ensure_ascii=False).encode()
        made = pb_utils.InferenceResponse([pb_utils.Tensor("response", np.array([data], np.object_))])
    except Failed as failed:
        made = pb_utils.InferenceResponse(error=failed.args[0])
    except Exception as fault:
        pb_utils.Logger.log_error(f"a chat request failed: {type(fault).__name__}: {fault}")
        error = pb_utils.TritonError("internal_error: the log says why.", pb_utils.TritonError.INTERNAL)
        made = pb_utils.InferenceResponse(error=error)
    sender.send(made, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class Failed(Exception):
    """What `chat_stream` says is wrong."""


def joined(pieces):
    """The completion whose pieces these are."""
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": pieces[-1]["choices"][0]["finish_reason"],
    }
    return {**pieces[-1], "object": "chat.completion", "choices": [choice]}
