"""A hub of one's own: what ``huggingface_hub`` asks for when a folder is pushed and pulled, with a folder behind it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote

_REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


class _Answers(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            (self.root / name).mkdir(parents=True)
            (self.root / name / ".gitattributes").write_text("*.safetensors filter=lfs\n")  # as every hub adds it
            self._say({"url": f"http://{self.headers['Host']}/{name}"})
        elif path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif re.fullmatch(rf"/api/models/{_REPOSITORY}/preupload/main", path):
            files = json.loads(body)["files"]
            self._say({"files": [{**one, "uploadMode": "regular", "shouldIgnore": False} for one in files]})
        elif found := re.fullmatch(rf"/api/models/{_REPOSITORY}/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    target = self.root / found["name"] / line["value"]["path"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(base64.b64decode(line["value"]["content"]))
            url = f"http://{self.headers['Host']}/{found['name']}/commit/{COMMIT}"
            self._say({"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._say({"error": path}, 404)

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if found := re.fullmatch(rf"/api/models/{_REPOSITORY}(/revision/.*)?", path):
            files = [{"rfilename": name} for name, _ in self._files(found["name"])]
            self._say({"id": found["name"], "sha": COMMIT, "siblings": files})
        elif found := re.fullmatch(rf"/api/models/{_REPOSITORY}/tree/.*", path):
            self._say(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in self._files(found["name"])
                ]
            )
        elif (found := re.fullmatch(rf"/{_REPOSITORY}/resolve/[^/]+/(?P<file>.*)", path)) and (
            file := self.root / found["name"] / found["file"]
        ).is_file():
            data = file.read_bytes()
            self._send(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', **{"X-Repo-Commit": COMMIT})
        else:
            self._say({"error": path}, 404)

    do_HEAD = do_GET

    def _files(self, name: str) -> list[tuple[str, bytes]]:
        folder = self.root / name
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]

    def _say(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status)

    def _send(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """Serve repositories below ``root``; yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (_Answers,), {"root": root}))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
