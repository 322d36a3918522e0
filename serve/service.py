"""A chat request from its body to its answer, with the export that answers, and what is counted and logged of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from ..adapters.ranges import MOST_SEED
from ..export.runtime.hotswap import Swap
from ..export.runtime.onnx_vlm import OnnxVLM
from ..toolkit.model.generating import Sampling
from ..toolkit.model.requests import Request
from ..toolkit.model.shortening import Shortened, shortened_if_possible
from .answer import Answer, Begun, Ended, Event, Failed, Piece, Verdict, Wanted
from .body import ChatBody, read_body
from .drift import RISK, Drift, Reference
from .engine import ExportEngine, Variant
from .errors import ApiError, as_api_error
from .logs import Log
from .messages import Limits, read_messages
from .metrics import Metrics
from .options import ServeOptions
from .policy import choices, require_allowed
from .replies import DONE, Choice, Replies, failure
from .scheduler import Scheduler

_READERS = 2  # threads that decode pictures: each may hold a large one


@dataclass
class Asked:
    """A request that is being answered.

    Attributes:
        short: what is asked, and what was dropped of it.
        events: what happens to its choices, by their places.
        began: when it came, in seconds of the monotonic clock.
        noted: whether it is over, counted and logged.
    """

    body: ChatBody
    short: Shortened
    client: str
    identity: str
    began: float
    events: asyncio.Queue[tuple[int, Event]]
    noted: bool = False
    answers: list[Answer] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)

    @property
    def request(self) -> Request:
        """What is asked."""
        return self.short.request

    @property
    def chosen(self) -> dict[str, Any]:
        """What is told with the answer: what the request chose, and what of it was dropped, if anything."""
        dropped = {"dropped_turns": self.short.turns, "dropped_pictures": self.short.pictures}
        return self.body.safetykit.chosen | (dropped if self.short.turns else {})

    def cancel(self) -> None:
        """Stop answering; what is complete already stays."""
        for one in self.answers:
            one.cancel()


class Service:
    """An export that answers chat requests.

    Args:
        model: used by one thread of the service's own from now on.
        name: what clients call it.
        swaps: adapters that requests may choose, by name.
        plain: the model without adapters, if requests may choose that.
        watched: what the export's own adapters said in their calibration.

    Attributes:
        watched: see above.
        fingerprint: of the graph that answers.
        when_broken: called from another thread when nothing is answered any more, see :class:`Scheduler`.
    """

    def __init__(
        self,
        model: OnnxVLM,
        name: str,
        options: ServeOptions,
        log: Log,
        swaps: Mapping[str, Swap] | None = None,
        watched: Sequence[Reference] = (),
        plain: OnnxVLM | None = None,
    ) -> None:
        self.model, self.name, self.options, self.log = model, name, options, log
        self.created = int(time.time())
        self.watched = tuple(watched)
        self._engine = ExportEngine(model, swaps, plain, scales=options.allow_strength is not None)
        self.when_broken: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._said: deque[tuple[Asked, int, Event]] = deque()  # by the scheduler's thread, and not handed on yet
        self.scheduler = Scheduler(
            self._engine,
            max_batch=options.max_batch,
            max_queue=options.max_queue,
            when_broken=self._broken,
            turned=self._turned,
        )
        self.metrics = Metrics(self.scheduler, watched)
        self._drift = Drift(watched, window=options.drift_window, false_alarms=options.drift_false_alarms)
        self._readers = ThreadPoolExecutor(_READERS, "safetykit-reader")
        self._present = 0
        files = model.manifest.files
        self.fingerprint = (
            "fp_" + (files.get(model.manifest.graph_file("decoder")) or model.manifest.base.fingerprint)[:12]
        )

    @property
    def choices(self) -> dict[str, Any]:
        """JSON-able, how a request may choose to be answered."""
        return choices(self.options, self._engine.adapters)

    @property
    def policy(self) -> dict[str, Any]:
        """JSON-able, what a request may choose."""
        return {**self.choices, **{name: getattr(self.options, name) for name in ("max_new_tokens", "max_pictures")}}

    def close(self) -> None:
        """End the threads; what is not answered fails."""
        self.scheduler.close()
        self._readers.shutdown(cancel_futures=True)

    def _broken(self, error: BaseException) -> None:
        self.log("broken", reason=f"{type(error).__name__}: {error}")
        self.when_broken()

    def _turned(self) -> None:
        """Have the loop hand on what a turn of the scheduler has said: woken once, and not for every row."""
        if self._said and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._hand_on)

    def _hand_on(self) -> None:
        while self._said:
            asked, at, event = self._said.popleft()
            asked.events.put_nowait((at, event))

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """A request is there; so many may be that each could have a row.

        Raises:
            ApiError: there are too many.
            Draining, Broken: the server ends.
        """
        self.scheduler.require_ready()
        if self._present >= self.options.max_batch + self.options.max_queue:
            raise ApiError(429, "Too many requests are there.", code="queue_full", retry_after=1)
        self._present += 1
        try:
            yield
        finally:
            self._present -= 1

    async def ask(self, data: bytes, client: str, began: float) -> Asked:
        """Check a body and queue its answers.

        Raises:
            ApiError: a field is wrong or not allowed, or there is no room.
        """
        self._loop = asyncio.get_running_loop()
        body, short = await self._loop.run_in_executor(self._readers, self._read, data)
        asked = Asked(body, short, client, f"chatcmpl-{secrets.token_hex(12)}", began, asyncio.Queue())
        for at in range(body.n):

            def tell(event: Event, at: int = at) -> None:
                self._said.append((asked, at, event))

            answer = Answer(self._engine.of(body.safetykit.adapter), short.request, self._wanted(body, at), tell)
            answer.client, answer.variant = client, _variant(body)
            answer.deadline = began + self.options.timeout
            asked.answers.append(answer)
            asked.choices.append(Choice())
        self.scheduler.submit(asked.answers)
        return asked

    async def events(self, asked: Asked) -> AsyncIterator[tuple[int, Event]]:
        """What happens until all choices are complete; noted in them, counted and logged.

        Raises:
            ApiError: one of them fails; the others are given up.
        """
        left = len(asked.choices)
        try:
            while left:
                at, event = await asked.events.get()
                choice = asked.choices[at]
                match event:
                    case Failed(error):
                        raise as_api_error(error) from error
                    case Begun():
                        choice.begun = event
                        if at == 0:
                            self.metrics.note(event.verdict, event.prompt_tokens, time.monotonic() - asked.began)
                            self._compare(asked, event.verdict)
                    case Piece(text, logprobs):
                        choice.text += text
                        choice.logprobs += logprobs
                    case Ended(reason, tokens):
                        choice.reason, choice.tokens, left = reason, tokens, left - 1
                        self.metrics.answers.labels(reason).inc()
                        self.metrics.tokens.labels("completion").inc(tokens)
                yield at, event
        finally:
            asked.cancel()

    async def whole(self, asked: Asked) -> dict[str, Any]:
        """The completion when it is complete."""
        async for _ in self.events(asked):
            pass
        return self._replies(asked).whole(asked.choices)

    async def pieces(self, asked: Asked) -> AsyncIterator[bytes]:
        """The completion as server-sent events, those together that came together.

        Only what fails before any were given is raised.
        """
        replies, sent, ready = self._replies(asked), False, b""
        options = asked.body.stream_options
        with_usage = options is not None and options.include_usage
        try:
            async for at, event in self.events(asked):
                match event:
                    case Begun():
                        ready += replies.begin(at, asked.choices[at], with_usage=with_usage)
                    case Piece():
                        ready += replies.piece(at, event, with_usage=with_usage)
                    case Ended():
                        ready += replies.end(at, asked.choices[at], with_usage=with_usage)
                if asked.events.empty() and any(choice.reason is None for choice in asked.choices):
                    yield ready
                    sent, ready = True, b""
        except ApiError as error:
            if not sent:
                raise
            self.note(asked, error)
            yield ready + failure(error)
            return
        self.note(asked)
        yield ready + (replies.usage(asked.choices) if with_usage else b"") + DONE

    def note(self, asked: Asked | None, error: ApiError | None = None, *, client: str = "", began: float = 0) -> None:
        """Count and log a request that is over, once."""
        if asked is not None:
            if asked.noted:
                return
            asked.noted = True
        status = error.status if error else 200
        self.metrics.requests.labels(str(status)).inc()
        fields: dict[str, Any] = {"client": asked.client if asked else client, "status": status}
        seconds = time.monotonic() - (asked.began if asked else began)
        if error:
            fields |= {"error": error.body["error"]["code"], "param": error.param}
            if error.status >= 500:  # what a client is not told in full
                fields["reason"] = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}"
        if asked:
            first = asked.choices[0]
            for answer, choice in zip(asked.answers, asked.choices, strict=False):
                if choice.reason is None:  # left, or failed, on its way
                    choice.tokens = answer.written
                    self.metrics.tokens.labels("completion").inc(choice.tokens)
            if error is None:
                self.metrics.latency.observe(seconds)
            fields |= {"id": asked.identity, **asked.chosen, "finish_reason": first.reason}
            fields |= {"completion_tokens": sum(one.tokens for one in asked.choices), "prompt": asked.request.prompt}
            fields["answer"] = first.text
            if first.begun:
                verdict = first.begun.verdict
                fields |= {"prompt_tokens": first.begun.prompt_tokens, "risk": verdict.risk, "refused": verdict.refused}
        self.log("request", **fields, seconds=round(seconds, 4))

    def _compare(self, asked: Asked, verdict: Verdict) -> None:
        """Whether prompts are still what the adapters were calibrated on; told once when that changes."""
        if _variant(asked.body) != Variant():
            return  # which says other things than what was calibrated
        scores = verdict.gates if verdict.risk is None else {**verdict.gates, RISK: verdict.risk}
        for window in self._drift.note(scores, pictured=bool(asked.request.pictures)):
            self.metrics.compared(window)
            if window.changed:
                figures = {name: round(getattr(window, name), 4) for name in ("above", "share", "expected")}
                event = "drift" if window.alarm else "drift is over"
                self.log(event, **window.reference.told(), window=self.options.drift_window, **figures)

    def _read(self, data: bytes) -> tuple[ChatBody, Shortened]:
        body, options = read_body(data), self.options
        require_allowed(body, self.name, options, self._engine.adapters)
        request = read_messages(body.messages, Limits(options.max_pictures, options.max_pixels))
        return body, shortened_if_possible(self.model.inputs, request) if options.truncate else Shortened(request)

    def _wanted(self, body: ChatBody, at: int) -> Wanted:
        seed = secrets.randbits(32) if body.seed is None else body.seed
        most = body.max_completion_tokens or body.max_tokens or self.options.max_new_tokens
        sampling = Sampling(body.temperature > 0, body.temperature or 1.0, body.top_p, (seed + at) % (MOST_SEED + 1))
        top = (body.top_logprobs or 0) if body.logprobs else None
        return Wanted(most, sampling, body.stops, top, body.safetykit.shadow, body.stream)

    def _replies(self, asked: Asked) -> Replies:
        body, created = asked.body, int(time.time())
        return Replies(
            asked.identity,
            created,
            self.name,
            self.fingerprint,
            asked.chosen,
            lambda token: self.model.inputs.tokenizer.decode([token]),
            logprobs=body.logprobs,
        )


def _variant(body: ChatBody) -> Variant:
    chosen = body.safetykit
    return Variant(chosen.adapter, 1.0 if chosen.strength is None else chosen.strength)
