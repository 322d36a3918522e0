"""A server that speaks OpenAI's chat completions, asked as a model is. No torch is imported here.

What `safetykit serve` adds is read where it is there: the detector's verdict and the scores of gates.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ...adapters.errors import RequestRefused, SafetykitError, ServerFailed, UsageError
from ...adapters.extras import missing
from ...adapters.near import did_you_mean
from ..data.pictures import as_url
from .requests import Generation, Request

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

KEY_VARIABLE = "SAFETYKIT_API_KEY"
_RETRIES = 8  # of a request that finds the server busy or gone
_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before the first of them, doubled from one to the next, and at most
_REFUSED = (400, 413, 422)  # statuses that say that this request cannot be answered
_BUSY = (408, 409, 429)  # and those, besides 500 and above, that another try may not meet

T = TypeVar("T")


class Endpoint:
    """One model of a server.

    Args:
        url: of the interface, such as ``http://127.0.0.1:8000/v1``; ``/v1`` is added where there is no path.
        model: which one; by default the only one that it has.
        timeout: seconds of one try.
        waiting: told why the server is asked again, when it does not answer; and an empty text once it does.
        key_variable: of the environment, with the server's key.

    Attributes:
        model: its name.
        fingerprint: of what answers, where the server says it.

    Raises:
        MissingExtra: OpenAI's client is not installed.
        UsageError: no address, no such model, or the key of the environment is not accepted.
        ServerFailed: nothing answers there.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        timeout: float = 120.0,
        waiting: Callable[[str], None] | None = None,
        key_variable: str = KEY_VARIABLE,
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise missing("openai", "Asking a server") from None
        self.url = _whole(url)
        self._key_variable = key_variable
        key = os.environ.get(key_variable) or "none"
        self._client = openai.OpenAI(base_url=self.url, api_key=key, timeout=timeout, max_retries=0)
        self._waiting, self._waits = waiting or (lambda _: None), False
        with self._errors():
            found = self._tried(lambda: list(self._client.models.list()), min(1, _RETRIES), Event())
            served = {one.id: one.model_extra or {} for one in found}
        self.model = self._chosen(list(served), model)
        told = served[self.model].get("safetykit")
        self.fingerprint = str(told.get("system_fingerprint", "")) if isinstance(told, Mapping) else ""

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]:
        """Ask all at once, greedily; the order is kept.

        Raises:
            RequestRefused: the server says that a request cannot be answered.
            ServerFailed: it does not answer, or not as it should.
        """
        over = Event()
        asked = [_begun(partial(self._asked, one, max_new_tokens, {}, over)) for one in requests]
        try:
            return [_generation(self._placed(one.result, at, len(asked), requests[at])) for at, one in enumerate(asked)]
        finally:
            over.set()  # for those that are not answered, where one failed or all were given up

    def ask(self, request: Request, max_new_tokens: int, **fields: Any) -> ChatCompletion:
        """The completion of one request.

        Args:
            fields: further ones of the interface.

        Raises:
            UsageError: it cannot be answered.
            ServerFailed: as of :meth:`generate`.
        """
        return self._asked(request, max_new_tokens, fields, Event())

    def _asked(self, request: Request, max_new_tokens: int, fields: Mapping[str, Any], over: Event) -> ChatCompletion:
        messages = chat_messages(request)

        def ask() -> ChatCompletion:
            made: ChatCompletion = self._client.chat.completions.create(
                model=self.model, messages=messages, max_tokens=max_new_tokens, temperature=0, **fields
            )
            return made

        with self._errors():
            found = self._tried(ask, _RETRIES, over)
        if not getattr(found, "choices", None):
            raise ServerFailed(f"The server at {self.url} answered without an answer.", "Its log may say why.")
        return found

    def _tried(self, ask: Callable[[], T], retries: int, over: Event) -> T:
        """What ``ask`` gives, which is asked again while the server is busy or gone; no more once it is ``over``."""
        import openai

        for at in range(retries + 1):
            try:
                found = ask()
            except (openai.APIConnectionError, openai.APIStatusError) as error:
                status = getattr(error, "status_code", 500)
                if at == retries or not (status in _BUSY or status >= 500):
                    raise
                self._waits = True
                self._waiting(f"the server does not answer ({_why(error)}) and is asked again")
                if over.wait(_pause(error, at)):
                    raise
                continue
            if self._waits:
                self._waits = False
                self._waiting("")
            return found
        raise AssertionError  # the last try returns or raises

    def _placed(self, made: Any, at: int, count: int, request: Request) -> ChatCompletion:
        try:
            completion: ChatCompletion = made()
        except UsageError as error:
            raise RequestRefused(at, count, request.prompt, error) from None
        return completion

    def _chosen(self, served: Sequence[str], wanted: str | None) -> str:
        if wanted is None and len(served) == 1:
            return served[0]
        if wanted is not None and wanted in served:
            return wanted
        named = ", ".join(served[:20]) or "none"
        if wanted is None:
            raise UsageError(f"The server at {self.url} has several models, or none: {named}.", "Say --served-model.")
        raise UsageError(
            f"The server at {self.url} has no model {wanted!r}; it has {named}.",
            did_you_mean(wanted, served) or "Choose one of these, or another server.",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """OpenAI's errors in our words."""
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            raise self._told(error) from None
        except openai.APIConnectionError as error:
            raise ServerFailed(
                f"The server at {self.url} does not answer: {_why(error)}.", "See whether it runs there."
            ) from None
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise ServerFailed(
                f"The server at {self.url} does not answer as OpenAI's interface does: {error}.",
                "Give the address of such an interface, up to /v1.",
            ) from None

    def _told(self, error: Any) -> SafetykitError:
        body = error.body if isinstance(error.body, Mapping) else {}
        said = str(body.get("message") or error.message)[:500].rstrip(".")
        if error.status_code in (401, 403):
            return UsageError(
                f"The server at {self.url} refuses: {said}.", f"Put an API key into {self._key_variable}."
            )
        if error.status_code in _REFUSED:
            return UsageError(f"{said}.", f"So says the server at {self.url}.")
        if error.status_code == 404:
            return UsageError(
                f"The server at {self.url} does not know that: {said}.",
                "Give its address up to /v1, and a model that it has.",
            )
        return ServerFailed(f"The server at {self.url} failed with status {error.status_code}: {said}.", "See its log.")


def chat_messages(request: Request) -> list[Any]:
    """A request as OpenAI's messages; pictures are PNGs in data URLs.

    Raises:
        UsageError: the beginning of the answer is given, which a client cannot do.
    """
    if request.answer or request.ended:
        raise UsageError("A server begins its answers itself.", "Leave out the beginning of the answer.")
    pictures = iter(request.pictures)
    messages = request.messages()
    for message in messages:
        if message["role"] == "system":
            message["content"] = "".join(part["text"] for part in message["content"])
            continue
        message["content"] = [
            part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": as_url(next(pictures))}}
            for part in message["content"]
        ]
    return messages


def verdict_of(completion: ChatCompletion) -> Mapping[str, Any]:
    """What `safetykit serve` adds to a completion; empty from other servers."""
    found = (completion.model_extra or {}).get("safetykit")
    return found if isinstance(found, Mapping) else {}


def _begun(make: Callable[[], T]) -> Future[T]:
    """``make`` in a thread of its own, which keeps no process from ending."""
    found: Future[T] = Future()

    def run() -> None:
        try:
            found.set_result(make())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=run, daemon=True).start()
    return found


def _pause(error: Any, at: int) -> float:
    """Seconds before the next try: what the server asks for, or more from one try to the next."""
    response: Any = getattr(error, "response", None)
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        asked = float(response.headers["retry-after"])
        if 0 < asked <= 60:
            return asked
    return min(_PAUSE * 2.0**at, _LONGEST_PAUSE)


def _why(error: Any) -> str:
    """In few words."""
    if (status := getattr(error, "status_code", None)) is not None:
        return f"status {status}"
    return "it takes too long" if "Timeout" in type(error).__name__ else str(error.__cause__ or error)


def _generation(completion: ChatCompletion) -> Generation:
    choice, verdict = completion.choices[0], verdict_of(completion)
    gates = verdict.get("gates")
    scores = {str(name): float(value) for name, value in (gates if isinstance(gates, Mapping) else {}).items()}
    risk, threshold = verdict.get("risk"), verdict.get("threshold")
    if isinstance(risk, (int, float)) and isinstance(threshold, (int, float)):
        scores["risk"] = float(risk) - float(threshold)
    refused = bool(verdict.get("refused", choice.finish_reason == "content_filter"))
    return Generation(choice.message.content or choice.message.refusal or "", (), scores, refused)


def _whole(url: str) -> str:
    parts = urlsplit(url)
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError(
            f"The address of the server at {parts.hostname} holds more than host and path, and addresses are written "
            "down with results.",
            f"Leave it out; keys belong into the environment, {KEY_VARIABLE} or that of judges.",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{url} is no address of a server.", "Write it as http://127.0.0.1:8000/v1.")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"
