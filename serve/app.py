"""The HTTP surface: OpenAI's chat completions and models, health and readiness for orchestrators, metrics."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .access import Keys, require_own_host
from .errors import ApiError, as_api_error, gone
from .page import page_routes
from .service import Asked, Service

CHAT = "/v1/chat/completions"


def application(service: Service, keys: Keys) -> FastAPI:
    """The application; its end closes the service.

    Its routes are plain ones: nothing of a request is resolved before :func:`_chat` has looked at who asks.
    """

    @contextlib.asynccontextmanager
    async def alive(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    async def told(request: Request, error: Exception) -> Response:
        return _counted(service, as_api_error(error))

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path} is not served here. Questions go to POST {CHAT}."
        return _counted(service, ApiError(error.status_code, message, code="unknown_url"))

    async def healthz(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(request: Request) -> Response:
        ready = service.scheduler.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(request: Request) -> Response:
        keys.client(request.headers.get("authorization"))
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "safetykit"}
    model["safetykit"] = {"system_fingerprint": service.fingerprint, **service.policy}

    async def models(request: Request) -> Response:
        keys.client(request.headers.get("authorization"))
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        keys.client(request.headers.get("authorization"))
        name = request.path_params["name"]
        if name != service.name:
            raise ApiError(404, f"The model {name[:100]!r} does not exist.", param="model", code="model_not_found")
        return JSONResponse(model)

    async def chat(request: Request) -> Response:
        return await _chat(service, keys, request)

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", one_model),
        Route(CHAT, chat, methods=["POST"]),
        *(page_routes() if service.options.page else ()),
    ]
    anybody = len(keys) or service.options.allow_anonymous
    return FastAPI(
        routes=routes,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=alive,
        exception_handlers={ApiError: told, HTTPException: unknown},
        middleware=[] if anybody else [Middleware(_OwnHost, service=service)],
    )


class _OwnHost:
    """Lets through what was sent to the server's own name; see :func:`require_own_host`."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                require_own_host(Request(scope).headers.get("host", ""), self._service.options.host)
            except ApiError as error:
                await _counted(self._service, error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _chat(service: Service, keys: Keys, request: Request) -> Response:
    began, client = time.monotonic(), ""
    asked: Asked | None = None
    held = contextlib.ExitStack()
    try:
        client = keys.client(request.headers.get("authorization"))
        held.enter_context(service.entered())
        asked = await service.ask(await _body(request, service, began), client, began)
        if asked.body.stream:
            pieces = service.pieces(asked)
            first = await _unless_gone(request, anext(pieces))
            return _Stream(_after(first, pieces), _ending(service, asked, held.pop_all()))
        whole = await _unless_gone(request, service.whole(asked))
        service.note(asked)
        return JSONResponse(whole)
    except Exception as error:
        refused = as_api_error(error)
        if refused is not error and refused.__cause__ is None:
            refused.__cause__ = error
        service.note(asked, refused, client=client, began=began)
        return _told(refused)
    except asyncio.CancelledError:  # the server ends and waits no longer
        if asked is not None:
            asked.cancel()
        raise
    finally:
        held.close()


async def _body(request: Request, service: Service, began: float) -> bytes:
    """The body, if it is small enough and comes in time."""
    most, data = service.options.max_body, bytearray()
    too_large = ApiError(413, f"A request has at most {most} bytes.", code="request_too_large")
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said) > most:
        raise too_large
    try:
        async with asyncio.timeout(service.options.timeout):
            async for part in request.stream():
                data += part
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, "The request did not come in time.", code="timeout") from None
    return bytes(data)


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """What ``work`` gives, unless the client leaves before.

    Raises:
        ApiError: it left; nobody reads that.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise gone()
    finally:
        for one in (working, leaving):
            if not one.done():
                one.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await one


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _after(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for one in pieces:
        yield one


class _Stream(StreamingResponse):
    """Server-sent events; ``end`` is called however they end."""

    def __init__(self, pieces: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._end = end

    async def __call__(self, *given: Any) -> None:
        try:
            await super().__call__(*given)
        finally:
            self._end()


def _ending(service: Service, asked: Asked, held: contextlib.ExitStack) -> Callable[[], None]:
    """What ends a stream: its rows are let go, and its place is free."""

    def end() -> None:
        asked.cancel()
        held.close()
        if any(choice.reason is None for choice in asked.choices):
            service.note(asked, gone())

    return end


def _told(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def _counted(service: Service, error: ApiError) -> Response:
    """A refusal of what never became a question."""
    service.metrics.requests.labels(str(error.status)).inc()
    return _told(error)
