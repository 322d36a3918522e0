"""The body of a chat request, checked: every field is understood, or refused by its name.

https://platform.openai.com/docs/api-reference/chat/create has the fields. Of those that would change the answer and
are not supported only the values are accepted that mean nothing. null means that a field is left out.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..adapters.near import did_you_mean
from .errors import ApiError

TOP_LOGPROBS = 20
# Said about the request and not to the model.
HARMLESS = frozenset(("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "metadata"))
# Not supported: the values that change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}

Stop = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(_Fields):
    """How an answer is streamed; ``include_obfuscation`` would hide lengths of pieces and is not supported."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Extension(_Fields):
    """What the server's policy may allow a request to choose.

    Attributes:
        adapter: the name of another adapter, or ``on`` for the export's own.
        shadow: a risk above the threshold is told and not acted on.
        strength: how strongly the adapter acts, as a multiple of how it was fitted; None for as it was.
    """

    adapter: str = "on"
    shadow: bool = False
    strength: Annotated[float, Field(ge=0)] | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """What is told with the answer: the adapter, and its strength if the request has one."""
        return {"adapter": self.adapter} | ({} if self.strength is None else {"strength": self.strength})


class ChatBody(_Fields):
    """The fields that act."""

    model: str
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] = Field(default_factory=list)
    n: Annotated[int, Field(ge=1)] = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    safetykit: Extension = Extension()

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def read_body(data: bytes) -> ChatBody:
    """The request in the bytes of a body.

    Raises:
        ApiError: they are no JSON object, a field is wrong, or one is not supported.
    """
    value = _parsed(data)
    known = set(ChatBody.model_fields)
    given = {name: one for name, one in value.items() if one is not None and name not in HARMLESS}
    for name, one in list(given.items()):
        if name in known:
            continue
        if name not in NEUTRAL:
            hint = did_you_mean(name, [*known, *NEUTRAL])
            message = f"Unrecognized request argument supplied: {name[:100]}. {hint}".strip()
            raise ApiError(400, message, param=name[:100], code="unknown_parameter")
        if not any(type(one) is type(other) and one == other for other in _widened(NEUTRAL[name])):
            message = f"{name} is not supported by this server. Leave it out."
            raise ApiError(400, message, param=name, code="unsupported_parameter")
        del given[name]
    try:
        body = ChatBody.model_validate(given)
    except ValidationError as error:
        _refuse(error)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs", code="invalid_value")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream to be true.", param="stream_options", code="invalid_value")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        message = "max_tokens and max_completion_tokens say different things. Give one of them."
        raise ApiError(400, message, param="max_tokens", code="invalid_value")
    return body


def _widened(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Whole numbers as floats, too."""
    return (*values, *(float(one) for one in values if type(one) is int))


def _parsed(data: bytes) -> dict[str, Any]:
    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number of JSON")

    try:
        value = json.loads(data.decode(), parse_constant=no_number)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:
        raise ApiError(400, f"The body is not JSON in UTF-8: {error}"[:300], code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "The body is no JSON object.", code="invalid_json")
    return value


def _refuse(error: ValidationError) -> NoReturn:
    """Tell the first of pydantic's errors as OpenAI does."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = [str(part) for part in first["loc"]]
    param = ".".join(place[:2] if place[0] in ("stream_options", "safetykit") else place[:1])
    if first["type"] == "missing":
        raise ApiError(400, f"you must provide a {param} parameter", param=param, code="missing_required_parameter")
    if first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param[:200]}"
        raise ApiError(400, message, param=param[:200], code="unknown_parameter")
    raise ApiError(400, f"Invalid '{param}': {first['msg']}.", param=param, code="invalid_value")
