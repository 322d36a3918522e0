"""An export as a deployment of Ray Serve: the endpoint of `safetykit serve` in several processes or machines.

    serve run safetykit.serve.replicas:deployment export=/models/export replicas=2 name=my-vlm

Each replica is a server of its own, with its own session, queue and metrics; Ray's proxies listen, spread requests over
the replicas, and start one again that died. Needs ``ray[serve]`` 2.60 or newer beside the packages of the extra
``serve``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..adapters.errors import UsageError
from ..adapters.settings import setting
from .access import Keys, read_keys
from .app import application
from .options import ServeOptions
from .plan import require_export, require_keys
from .running import serving

if TYPE_CHECKING:
    from ray.serve import Application
    from starlette.types import ASGIApp


class ReplicaOptions(ServeOptions):
    """What may be chosen of a deployment: what `safetykit serve` takes, by the names of its options."""

    export: Path = setting(..., "Export folder, at the same path on every machine.")
    replicas: int = setting(1, "Processes that answer, each with a session of its own.", ge=1)
    cpus: float = setting(1.0, "Processor cores that Ray keeps for a replica.", ge=0)
    gpus: float = setting(0.0, "GPUs that Ray keeps for a replica; shares of one are possible.", ge=0)


class Replica:
    """One process that answers; Ray calls it.

    Raises:
        SafetykitError: the export cannot be served; Ray tries again and then calls the deployment unhealthy.
    """

    def __init__(self, options: ReplicaOptions) -> None:
        self._keys = _keys(options)
        self._open = contextlib.ExitStack()
        self._service = self._open.enter_context(serving(options.export, options))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return application(self._service, self._keys)

    def check_health(self) -> None:
        """Raise where nothing would be answered any more, so that Ray replaces this replica."""
        if not self._service.scheduler.ready:
            raise RuntimeError("The thread that answers has ended.")


def deployment(given: Mapping[str, Any]) -> Application:
    """The application for ``serve run``, with what follows its name there, or of ``args`` in a configuration file.

    Raises:
        UsageError: an option is unknown, missing or wrong, there is no export, or nobody says who may ask.
    """
    from ray import serve

    options = read_options(given)
    require_export(options.export)
    _keys(options)
    made = serve.deployment(
        serve.ingress()(Replica),
        name="safetykit",
        num_replicas=options.replicas,
        max_ongoing_requests=options.max_batch + options.max_queue,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        graceful_shutdown_timeout_s=options.drain,
    )
    return made.bind(options)


def read_options(given: Mapping[str, Any]) -> ReplicaOptions:
    """The options in ``name=value`` pairs, whose names may be written with hyphens.

    Raises:
        UsageError: naming the first that is unknown, missing or wrong.
    """
    named = {name.replace("-", "_"): value for name, value in given.items()}
    if taken := sorted(named.keys() & {"host", "port"}):
        raise UsageError(
            f"{taken[0]} is for Ray's proxies to know.", "Give it to `serve start` or in `http_options` of its file."
        )
    return ReplicaOptions(**named)


def _keys(options: ReplicaOptions) -> Keys:
    """Who may ask; Ray's proxies listen wherever they were told to, so nobody is refused by an address."""
    keys = read_keys(options.api_key_file)
    require_keys(keys, options.model_copy(update={"host": "0.0.0.0"}))
    return keys
