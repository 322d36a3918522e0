"""A page to try a server with: a conversation with pictures, and the verdict beside each answer.

Its files are static and speak to this server only, as any client does, with the API key that is typed into it. The
headers let nothing else in: no script and no style but these files, no other address, no frame.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FILES = {"page.css": "text/css", "page.js": "text/javascript", "client.js": "text/javascript"}
_FILES |= {"verdict.js": "text/javascript"}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "form-action": "'none'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page at ``/``, and its files below ``/page``."""
    folder = files(__package__) / "static"
    whole = (folder / "index.html").read_bytes()
    parts = {name: (folder / name).read_bytes() for name in _FILES}

    async def page(request: Request) -> Response:
        return Response(whole, headers=_HEADERS, media_type="text/html")

    async def part(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in parts:
            raise HTTPException(404)
        return Response(parts[name], headers=_HEADERS, media_type=_FILES[name])

    return [Route("/", page), Route("/page/{name}", part)]
