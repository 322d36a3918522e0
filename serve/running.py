"""A server from its export folder to its end: opened, listening, drained."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from ..adapters.errors import ServerFailed
from ..adapters.settings import spell
from ..export.runtime.hotswap import read_swap
from ..export.runtime.onnx_vlm import OnnxVLM
from ..export.runtime.sessions import CPU, computing_with, require_cores
from .access import Keys, read_keys
from .app import application
from .ending import FLUSH, DrainingServer, protocol
from .logs import Log, libraries_into
from .options import ServeOptions
from .plan import bound, require_choices, require_drift, require_keys, require_strength
from .service import Service


class Server:
    """A service at a socket.

    Attributes:
        told: JSON-able, what is served where, and which limits hold.
    """

    def __init__(self, service: Service, keys: Keys, listening: socket.socket) -> None:
        self._service, self._keys, self._socket = service, keys, listening
        options, (host, port) = service.options, listening.getsockname()[:2]
        model, limits = service.model, ("max_batch", "max_queue", "max_new_tokens", "max_pictures", "max_pixels")
        drift = ("drift_window", "drift_false_alarms")
        detector = model.detector
        self.told: dict[str, Any] = {
            "model": service.name,
            "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
            "keys": len(keys),
            "providers": list(model.providers),
            "threshold": None if detector is None else detector.threshold,
            **service.choices,
            "watched": [one.told() for one in service.watched],
            "page": options.page,
            "log_prompts": options.log_prompts,
            "threads": options.threads,
            **{name: getattr(options, name) for name in (*limits, "max_body", "timeout", "drain", *drift)},
            "max_prompt_tokens": model.inputs.max_prompt_tokens,
            "truncate": options.truncate,
        }

    def run(self) -> None:
        """Answer until SIGTERM or Ctrl-C; what was accepted is answered first, as far as ``drain`` allows.

        Raises:
            ServerFailed: what answers has failed beyond a single request; whoever watches the process starts it again.
        """
        options = self._service.options
        config = uvicorn.Config(
            application(self._service, self._keys),
            http=protocol(options.timeout),  # of h11, which bounds what headers hold; other parsers do not
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=FLUSH,
            lifespan="on",
        )
        libraries_into(self._service.log)
        self._service.log("listening", **self.told)
        server = DrainingServer(config, self._service)
        self._service.when_broken = lambda: setattr(server, "should_exit", True)
        server.run([self._socket])
        self._service.log("ended")
        if self._service.scheduler.broken:
            raise ServerFailed("The thread that answers has failed.", "The log says why, as `broken`; start it again.")


@contextlib.contextmanager
def opened(folder: Path, options: ServeOptions, *, say: Callable[[str], None] = print) -> Iterator[Server]:
    """A server that listens and does not answer yet.

    Raises:
        SafetykitError: as of :func:`serving`; or nothing can listen there, or keys are missing or cannot be read.
    """
    keys = read_keys(options.api_key_file)
    require_keys(keys, options)
    with bound(options.host, options.port) as listening, serving(folder, options, say=say) as service:
        yield Server(service, keys, listening)


@contextlib.contextmanager
def serving(folder: Path, options: ServeOptions, *, say: Callable[[str], None] = print) -> Iterator[Service]:
    """A service of an export, without a socket.

    Raises:
        SafetykitError: as of :meth:`OnnxVLM.from_pretrained`; or an adapter does not fit, or a canary fails.
    """
    options.require_use(
        ("allow_uncorrected_detector",), bool(options.swap or options.adapters), "an adapter (--swap or --adapter)"
    )
    options.require_use(("threads",), CPU[0] in options.providers, f"the provider {CPU[0]}")
    require_cores(options.threads, spell(ServeOptions, "threads"))
    allowed = options.allow_uncorrected_detector
    named = require_choices(folder, options)
    watched = require_drift(folder, options, say)
    with computing_with(options.threads):
        model = OnnxVLM.from_pretrained(folder, options.providers, index=options.external_index, opened=False)
        model.inputs.limit(options.max_prompt_tokens)
        own = None
        if options.swap:
            own = read_swap(options.swap, model.manifest, allow_uncorrected_detector=allowed)
        swaps = {
            name: read_swap([one], model.manifest, allow_uncorrected_detector=allowed) for name, one in named.items()
        }
        if options.allow_strength is not None:
            others = (*swaps.values(), *([own] if own is not None else ()))
            require_strength(model.path, model.manifest, others, options.allow_strength)
        if options.canary:
            found = model.check_canaries()
            say(f"{len(found.canaries)} canaries are answered as they were, {found.telling} of them show the adapters")
        model.open()
        plain = model.unmodified() if options.allow_off else None
        if plain is not None:
            plain.open()
        if own is not None:
            model.install(own)
        name = options.name or folder.resolve().name
        service = Service(model, name, options, Log(prompts=options.log_prompts), swaps, watched, plain)
        try:
            yield service
        finally:
            service.close()
