"""Chat templates come with a checkpoint, and are not trusted: they are rendered apart, with limits on time and size.

Jinja's sandbox keeps a template away from Python, but bounds neither its loops nor what it makes: two nested loops over
``range(99999)`` run for hours, ``'x' * 10 ** 10`` takes all memory as soon as it is compiled. So a process of its own
compiles and renders (:mod:`.template_worker`); it serves all requests, and is ended when it takes too long.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...adapters.errors import InvalidArtifact, UsageError
from . import template_worker

SECONDS = 5.0  # for one rendering; a template of a model takes milliseconds
MAX_CHARACTERS = 2**23  # of a rendered conversation
MAX_MEMORY = 2**29  # bytes of the process
_START = 120.0  # seconds to start in, on a machine with much else to do
_LINE = 6 * MAX_CHARACTERS + 2**12  # of an answer: JSON writes a character in at most six, or twelve beyond 16 bits
_ELSEWHERE = "Get the checkpoint or export from its source; its chat template is not one of a model."


def rendered(processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
    """A conversation in the chat template of a processor, up to where the answer begins.

    Raises:
        UsageError: there is no template, or it refuses the conversation.
        InvalidArtifact: it fails, takes too long or grows too large.
    """
    template = processor.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str):
        raise UsageError(
            "This model has no chat template.",
            "Give the checkpoint one: --chat-template FILE (in Python VLM.from_pretrained(…, chat_template=…)).",
        )
    variables = {
        **processor.tokenizer.special_tokens_map,
        "messages": list(turns),
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
    }
    found = _asked(template, variables)
    if "text" in found:
        return str(found["text"])
    if "refused" in found:
        raise UsageError(
            f"The model's chat template refuses the request: {found['refused'].rstrip('.')}.", "Ask in another form."
        )
    if "late" in found:
        raise InvalidArtifact(f"The model's chat template takes longer than {SECONDS:g} seconds.", _ELSEWHERE)
    if "large" in found:
        raise InvalidArtifact(
            f"The model's chat template makes more than {MAX_CHARACTERS} characters, or takes more than "
            f"{MAX_MEMORY >> 20} MiB.",
            _ELSEWHERE,
        )
    raise InvalidArtifact(f"The model's chat template fails ({found['kind']}: {found['failed']}).", _ELSEWHERE)


def require_compiles(template: str, called: str) -> None:
    """Refuse a text that is no template, in the sandbox in which templates are rendered.

    Args:
        called: how to call it in the error.

    Raises:
        UsageError: with the reason.
    """
    messages = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
    found = _asked(template, {"messages": messages, "add_generation_prompt": True})
    if found.get("kind", "").startswith("Template"):
        raise UsageError(f"{called} does not compile: {found['failed'].rstrip('.')}.", "Correct it; it is Jinja.")
    if "late" in found or "large" in found:
        limit = f"{SECONDS:g} seconds" if "late" in found else f"{MAX_CHARACTERS} characters, or {MAX_MEMORY >> 20} MiB"
        raise UsageError(f"{called} takes more than {limit} for a short request.", "It is not a template of a model.")


def _asked(template: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What :func:`.template_worker.answer` says.

    Raises:
        UsageError: there is too much to render.
    """
    question = json.dumps({"template": template, "variables": variables}, default=str)
    if len(question) > MAX_CHARACTERS:
        raise UsageError(f"A request and its template have more than {MAX_CHARACTERS} characters.", "Shorten it.")
    with _one_at_a_time:
        return _worker().ask(question)


class _Worker:
    """The process."""

    def __init__(self) -> None:
        import jinja2
        import markupsafe

        folders = {str(Path(str(module.__file__)).parents[1]): None for module in (jinja2, markupsafe)}
        program = [sys.executable, "-I", "-S", str(template_worker.__file__)]
        self._process = subprocess.Popen(
            [*program, str(MAX_MEMORY), str(MAX_CHARACTERS), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._late = False
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="chat templates", daemon=True).start()
        if not self._exchange(b"", _START):
            raise UsageError(
                "The process that renders chat templates does not start.", f"Look at what `{' '.join(program)}` says."
            )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, question: str) -> dict[str, Any]:
        """What :func:`.template_worker.answer` says; ``late`` or ``large`` where it could say nothing."""
        said = self._exchange(question.encode() + b"\n", SECONDS)
        if said.endswith(b"\n"):
            found: dict[str, Any] = json.loads(said)
            return found
        self.end()
        return {"late": True} if self._late else {"large": True}

    def _exchange(self, line: bytes, seconds: float) -> bytes:
        assert self._process.stdin is not None
        try:
            if line:
                self._process.stdin.write(line)
                self._process.stdin.flush()
            return self._lines.get(timeout=seconds)
        except queue.Empty:
            self._late = True
            return b""
        except OSError:  # it has ended
            return b""
        except BaseException:  # of this process, by its user: the answer must not be taken for the next one's
            self.end()
            raise

    def _read(self) -> None:
        """In a thread of its own, for not every system waits for a pipe with a limit."""
        assert self._process.stdout is not None
        with self._process.stdout as said:
            while line := said.readline(_LINE):
                self._lines.put(line)
        self._lines.put(b"")

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # of what was not written yet
            self._process.stdin.close()


_running: list[_Worker] = []  # at most one
_one_at_a_time = threading.Lock()


def _worker() -> _Worker:
    if _running and not _running[0].alive:
        _running.pop().end()
    if not _running:
        _running.append(_Worker())
    return _running[0]


def _forget() -> None:
    """A process that was forked from this one has no worker yet: the pipes belong to its parent."""
    global _one_at_a_time
    _running.clear()
    _one_at_a_time = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@atexit.register
def _end() -> None:
    while _running:
        _running.pop().end()
