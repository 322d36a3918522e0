"""Chromium without a window, told over its DevTools what to open, type and click; and what it then shows."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

_NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, _NAMES)), None)
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium")
_WORDS = ("--headless", "--remote-debugging-port=0", "--no-first-run", "--disable-gpu", "--disable-extensions")
_WORDS += ("--disable-background-networking", "--disable-dev-shm-usage", "--mute-audio")
_LOUD = ("warning", "error")
PATIENCE = 60  # seconds for what a machine that is busy may take


class Page:
    """A page that is open.

    Attributes:
        said: what its console and its policy complained of.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._numbers, self.said = socket, itertools.count(1), []
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.tell(f"{domain}.enable")

    def tell(self, method: str, **given: Any) -> dict[str, Any]:
        """A command of the DevTools, and its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while (found := json.loads(self._socket.recv(timeout=PATIENCE))).get("id") != number:
            told = found.get("params", {})
            if found.get("method") == "Runtime.exceptionThrown" or told.get("entry", {}).get("level") in _LOUD:
                self.said.append(told)
        assert "error" not in found, (method, found)
        return found["result"]

    def open(self, url: str) -> None:
        """Go there, and wait until its scripts have run."""
        self.tell("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def value(self, script: str) -> Any:
        """What an expression is, as JSON; a promise is waited for."""
        found = self.tell("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = PATIENCE) -> Any:
        """The value of an expression as soon as it is true."""
        end = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < end, (script, self.said, self.value("document.body.innerText"))
            time.sleep(0.05)
        return found

    def text(self, selector: str) -> list[str]:
        """The text of every element that a selector of CSS finds, as it is shown."""
        return self.value(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText)")

    def type(self, selector: str, text: str, *, enter: bool = False) -> None:
        """Type into a field, and press Enter."""
        self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        self.tell("Input.insertText", text=text)
        if enter:
            self.press("Enter", 13)

    def press(self, key: str, code: int, **given: Any) -> None:
        """Press a key and let it go."""
        more = {"text": "\r"} if key == "Enter" else {}
        named = {"key": key, "code": key, "windowsVirtualKeyCode": code, **given}
        self.tell("Input.dispatchKeyEvent", type="keyDown", **named, **more)
        self.tell("Input.dispatchKeyEvent", type="keyUp", **named)

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Choose files in a field for them."""
        root = self.tell("DOM.getDocument")["root"]["nodeId"]
        node = self.tell("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.tell("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def looks(self, *, dark: bool = False, width: int = 1100, height: int = 800) -> None:
        """Prefer dark or light, in a window of this size."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.tell("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.tell("Emulation.setDeviceMetricsOverride", **size)

    def picture(self) -> bytes:
        """A PNG of what it shows."""
        return base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"])


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """An empty page of a browser of its own, which ends with the block."""
    words = [*_WORDS, f"--user-data-dir={profile}"]
    if os.geteuid() == 0:
        words.append("--no-sandbox")  # which Chromium refuses to use as root
    with subprocess.Popen([PROGRAM, *words, "about:blank"], stderr=subprocess.PIPE, text=True) as process:
        try:
            said = next(line for line in process.stderr if "DevTools listening on " in line)
            root = said.split("listening on ")[1].strip()
            with connect(root, max_size=None) as browser:
                browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                while (found := json.loads(browser.recv(timeout=PATIENCE))).get("id") != 1:
                    pass
            (target,) = [one for one in found["result"]["targetInfos"] if one["type"] == "page"]
            address = f"{root.split('/devtools/')[0]}/devtools/page/{target['targetId']}"
            with connect(address, max_size=None) as socket:
                yield Page(socket)
        finally:
            process.kill()
            process.stderr.close()
