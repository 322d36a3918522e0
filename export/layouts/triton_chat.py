"""Answers chat requests with the three graphs of this model repository: Triton's models `chat` and `chat_stream`.

In goes `request`, a JSON object as OpenAI's chat completions have it, and perhaps `picture`, the bytes of a file; out
comes `response`, a JSON object `chat.completion`. Of `chat_stream`, which is decoupled, come several: objects
`chat.completion.chunk`, the verdict first, then the text, then how it ended and the verdict again. Prompts and pictures
are prepared by run_ort.py beside this file, as io.json says; the graphs are called through Triton.
Needs numpy, tokenizers and Pillow in the Python of the Python backend.
"""

import base64
import binascii
import io
import json
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import run_ort
import triton_python_backend_utils as pb_utils
from drawing import Drawing
from growing_text import GrowingText

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
NAMES = ("chat", "chat_stream")
HARMLESS = ("user", "safety_identifier", "metadata", "store")  # said about the request, and not to the model
NEUTRAL = {"n": ("1",), "stream": ("false",)}  # not chosen here: the values, as JSON, that choose what is done anyway
FIELDS = {"model", "messages", "max_tokens", "max_completion_tokens", "stop", "temperature", "top_p", "seed"}
MOST_BYTES = 2**25  # of a request
SEED_BITS = 32  # of a seed


class Refused(ValueError):
    """A request that is wrong or not understood; the message begins with a code and what it is about."""

    def __init__(self, code, about, words):
        super().__init__(f"{code}: {about}: {words}")


class TritonPythonModel:
    """Each request is answered by a thread of its own, of which there are `parallel`; `max_queue` others may wait."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        settings = {name: one["string_value"] for name, one in config["parameters"].items()}
        folder = Path(args["model_repository"], args["model_version"])
        hashes = {name.removeprefix("sha256."): one for name, one in settings.items() if name.startswith("sha256.")}
        try:
            run_ort.require_whole(folder, hashes, hashes)
        except SystemExit as error:
            raise pb_utils.TritonModelException(str(error)) from None
        said = json.loads((folder / "io.json").read_text("utf-8"))
        rows = settings["rows"].split()
        graphs = {name: graph(name, one, name in rows) for name, one in said["graphs"].items()}
        self.model = run_ort.Answers(folder, said, graphs)
        self.decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.most = int(settings["max_new_tokens"])
        self.room = int(settings["parallel"]) + int(settings["max_queue"])
        self.threads, self.present = ThreadPoolExecutor(int(settings["parallel"])), []

    def finalize(self):
        self.threads.shutdown()

    def execute(self, requests):
        for request in requests:
            self.present = [one for one in self.present if not one.done()]
            sender = request.get_response_sender()
            if len(self.present) < self.room:
                data, picture = (given(request, name) for name in ("request", "picture"))
                self.present.append(self.threads.submit(self.answer, request.request_id(), data, picture, sender))
            else:
                sender.send(failed("queue_full: try again.", pb_utils.TritonError.UNAVAILABLE), flags=FINAL)

    def answer(self, identity, data, picture, sender):
        """Send an answer, whole or in pieces, or why there is none; nothing more to a client that left."""
        made, last = [], None
        try:
            for piece in self.pieces(identity or f"chatcmpl-{secrets.token_hex(12)}", data, picture):
                if sender.is_cancelled():
                    last = failed("cancelled: the client left.", pb_utils.TritonError.CANCELLED)
                    break
                if self.decoupled:
                    sender.send(response(piece))
                made.append(piece)
            else:
                last = None if self.decoupled else response(joined(made))
        except ValueError as wrong:
            words = str(wrong) if isinstance(wrong, Refused) else f"invalid_prompt: messages: {wrong}"
            last = failed(words, pb_utils.TritonError.INVALID_ARG)
        except Exception as fault:  # whatever graphs and server raise: it concerns this request alone
            pb_utils.Logger.log_error(f"a chat request failed: {type(fault).__name__}: {fault}")
            last = failed("internal_error: the log says why.", pb_utils.TritonError.INTERNAL)
        sender.send(*([] if last is None else [last]), flags=FINAL)

    def pieces(self, identity, data, attached):
        """An answer as JSON objects."""
        prompt, picture, choose, most, stop = asked(data, attached, self.most)
        following, detector = self.model.follow(prompt, picture, choose), self.model.detector
        first, text, reason = next(following), GrowingText(self.model.text, stop), "length"
        refused, risk = first["refused"], first["risk"]
        verdict = {"risk": risk if risk is None or np.isfinite(risk) else None, "refused": refused}
        verdict |= {"threshold": detector and detector["threshold"], "gates": first["gates"], "adapter": "on"}
        shared = {"id": identity, "object": "chat.completion.chunk", "created": int(time.time()), "model": NAMES[0]}

        def piece(delta, finish=None, **more):
            return {**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}

        yield piece({"role": "assistant", "content": ""}, safetykit=verdict)
        if refused:
            yield piece({"content": detector["refusal"]})
            reason = "content_filter"
        room = self.model.io["prompt"]["most_tokens"]
        most = most if room is None else max(1, min(most, room - first["tokens"]))
        for token in following:
            if token in self.model.io["end"]:
                reason = "stop"
                break
            text.add(token)
            if text.stopped or len(text.token_ids) >= most:
                reason = "stop" if text.stopped else "length"
                break
            if more := text.piece():
                yield piece({"content": more})
        if more := text.piece(last=True):
            yield piece({"content": more})
        tokenizer, prompted = self.model.tokenizer, first["tokens"]
        made = tokenizer.encode(detector["refusal"], add_special_tokens=False).ids if refused else text.token_ids
        used = {"prompt_tokens": prompted, "completion_tokens": len(made), "total_tokens": prompted + len(made)}
        yield piece({}, reason, safetykit=verdict, usage=used)


def graph(name, described, rows):
    """A graph as a function of what it is fed, by name, called through Triton; `rows`: it batches."""
    wanted = {one["name"]: len(one["shape"]) for one in described["outputs"]}

    def run(feeds):
        fed = {
            one: np.reshape(value, (-1, 1) if rows else -1) if np.ndim(value) < 2 else value
            for one, value in feeds.items()
        }
        request = pb_utils.InferenceRequest(
            model_name=name,
            requested_output_names=list(wanted),
            inputs=[pb_utils.Tensor(one, np.ascontiguousarray(value)) for one, value in fed.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(f"{name}: {response.error().message()}")
        found = {one: pb_utils.get_output_tensor_by_name(response, one).as_numpy() for one in wanted}
        return {one: value if wanted[one] > 1 else value.reshape(-1) for one, value in found.items()}  # a number a row

    return run


def given(request, name):
    """The bytes of an input; nothing if it was not given."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)[0]


def response(value):
    """A JSON object as what is sent."""
    text = np.array([json.dumps(value, ensure_ascii=False).encode()], np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor("response", text)])


def failed(words, code):
    """Why there is no answer, as what is sent."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(words, code))


def joined(pieces):
    """The completion whose pieces these are."""
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": pieces[-1]["choices"][0]["finish_reason"],
    }
    return {**pieces[-1], "object": "chat.completion", "choices": [choice]}


def asked(data, attached, limit):
    """Prompt, picture, how tokens are chosen, how many at most, and the texts that end an answer, of a request."""
    try:
        body = json.loads(data) if len(data) <= MOST_BYTES else None
        json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise Refused("invalid_json", "request", "it is not JSON in UTF-8.") from None
    if not isinstance(body, dict):
        raise Refused("invalid_json", "request", f"it is no JSON object of at most {MOST_BYTES} bytes.")
    body = {name: one for name, one in body.items() if one is not None and name not in HARMLESS}
    for name, one in body.items():
        if name not in FIELDS and json.dumps(one) not in NEUTRAL.get(name, ()):
            words = f"only {NEUTRAL[name][0]} is" if name in NEUTRAL else "it is not"
            raise Refused("unsupported_parameter", name[:100], f"{words} supported by this model. Leave it out.")
    if body.get("model", NAMES[0]) not in NAMES:
        raise Refused("model_not_found", "model", f"the model is {NAMES[0]}.")
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
    if not all(type(one) is int and 0 < one <= limit for one in limits):
        raise Refused("invalid_value", "max_tokens", f"it is a number from 1 to {limit}.")
    if len(set(limits)) > 1:
        raise Refused("invalid_value", "max_tokens", "max_completion_tokens says something else.")
    stop = body.get("stop", [])
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(one, str) and one for one in stop):
        raise Refused("invalid_value", "stop", "it is a text, or a list of up to four.")
    prompt, url = message(body.get("messages"))
    if url and attached:
        raise Refused("too_many_images", "messages", "a picture is attached, and another one is in the message.")
    return prompt, picture(url, attached), choosing(body), limits[0] if limits else limit, stop


def choosing(body):
    """How the next token is chosen of its logits: the likeliest at temperature 0, which is meant if none is given."""
    temperature, top_p, seed = (body.get(name, one) for name, one in (("temperature", 0), ("top_p", 1), ("seed", None)))
    if type(temperature) not in (int, float) or not 0 <= temperature <= 2:
        raise Refused("invalid_value", "temperature", "it is a number from 0 to 2.")
    if type(top_p) not in (int, float) or not 0 < top_p <= 1:
        raise Refused("invalid_value", "top_p", "it is a number above 0 and at most 1.")
    if type(seed) not in (int, type(None)) or not -(2**63) <= (seed or 0) < 2**63:
        raise Refused("invalid_value", "seed", "it is a whole number of 64 bits.")
    if not temperature:
        return np.argmax
    drawing = Drawing(temperature, top_p, secrets.randbits(SEED_BITS) if seed is None else seed % 2**SEED_BITS)
    return lambda logits: drawing(logits[None])[0]


def message(messages):
    """The text of the only message, and the address of its picture, which stands before the text."""
    match messages:
        case [{"role": "user", "content": content, **more}] if not more:
            pass
        case _:
            words = 'it is one message, {"role": "user", "content": …}.'
            raise Refused("invalid_value", "messages", words)
    match content:
        case str(text):
            url = None
        case [{"type": "text", "text": str(text), **more}] if not more:
            url = None
        case [
            {"type": "image_url", "image_url": {"url": str(url), **how}, **others},
            {"type": "text", "text": str(text), **more},
        ] if not others and not more and how in ({}, {"detail": "auto"}):
            pass
        case _:
            words = "it is a text, or a list of one text with one image_url before it or none."
            raise Refused("invalid_value", "messages.0.content", words)
    if not text.strip():
        raise Refused("invalid_value", "messages.0.content", "it asks nothing.")
    return text, url


def picture(url, attached):
    """The picture of a data URL or of an attached file; nothing if there is none."""
    if url is not None:
        head, _, data = url.partition(";base64,")
        if not head.startswith("data:image/"):
            words = "pictures come as data URLs (data:image/…;base64,…). Nothing is fetched."
            raise Refused("invalid_image_url", "messages.0.content.0", words)
        try:
            attached = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise Refused("invalid_base64", "messages.0.content.0", "the picture is not base64.") from None
    if attached is None:
        return None
    try:
        return run_ort.opened(file := io.BytesIO(attached))
    except Exception as error:  # decoders raise whatever the bytes lead them to
        words = run_ort.said(error).replace(repr(file), "of the request")
        raise Refused("invalid_image", "picture", f"{words}."[:300]) from None
