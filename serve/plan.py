"""What a server would be, refused before anything is opened where it cannot be."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from ..adapters.artifact.hub import located
from ..adapters.errors import UsageError
from ..adapters.extras import missing
from ..adapters.settings import spell
from ..export.manifest import ExportManifest, read_manifest
from ..export.runtime.hotswap import Swap, require_swappable, swap_in
from ..export.runtime.strength import scaled, strengths
from ..export.runtime.unmodified import base_graphs
from ..toolkit.data.sources import is_checkpoint, is_export
from .access import KEYS_VARIABLE, Keys, is_loopback
from .drift import Reference, least_window, references_of
from .engine import OFF, OWN
from .options import ServeOptions

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def require_packages() -> None:
    """Refuse to go on without the packages of the extra.

    Raises:
        MissingExtra: naming one and the command that installs it.
    """
    from importlib.util import find_spec

    for name in PACKAGES:
        if find_spec(name) is None:
            raise missing(name, "A server")


def require_export(folder: Path) -> None:
    """Refuse what is no export.

    Raises:
        UsageError: see above.
    """
    if is_export(folder):
        return
    if is_checkpoint(folder):
        raise UsageError(
            f"{folder} is a checkpoint, and exports are served.", f"Export it: safetykit export {folder} -o export."
        )
    raise UsageError(f"There is no export in {folder}.", "Give the folder that `safetykit export` wrote.")


def require_keys(keys: Keys, options: ServeOptions) -> None:
    """Refuse to answer other machines without keys, unless that was asked for.

    Raises:
        UsageError: see above; or it was asked for and cannot act.
    """
    if options.allow_anonymous and len(keys):
        raise UsageError(
            f"{spell(ServeOptions, 'allow_anonymous')} does nothing where there are API keys.", "Leave out one of them."
        )
    if not len(keys) and not options.allow_anonymous and not is_loopback(options.host):
        raise UsageError(
            f"At {options.host} everybody who reaches this machine could ask.",
            f"Give --api-key-file or {KEYS_VARIABLE}, or --allow-anonymous.",
        )


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at the address: who connects from now on waits until the server is up.

    Raises:
        UsageError: it is in use, or none of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen()
        except OSError:
            made.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"Nothing can listen at {host}, port {port}: {reason}.", "Choose another --port or --host."
        ) from None
    return made


def named_adapters(named: Sequence[str]) -> dict[str, Path]:
    """The folders of adapters that requests may choose, by name.

    Raises:
        UsageError: a name is missing, given twice or taken, or nothing is there.
    """
    found: dict[str, Path] = {}
    for one in named:
        name, _, folder = one.partition("=")
        if not name or not folder or name in (OWN, OFF) or name in found:
            raise UsageError(
                f"--adapter {one!r} names no adapter.", f"Write NAME=FOLDER, each name once; {OWN} and {OFF} are taken."
            )
        found[name] = located(folder)
        if not found[name].exists():
            raise UsageError(f"There is no adapter at {folder}.", "Correct the path of --adapter.")
    return found


def require_choices(folder: Path, options: ServeOptions) -> dict[str, Path]:
    """Refuse what requests could not choose, by what can be seen before the export's files are hashed.

    Returns:
        The folders of adapters that requests may choose, by name.

    Raises:
        UsageError: an adapter is not there, the export takes no others, or it holds no graphs without adapters.
    """
    named = named_adapters(options.adapters)
    if options.adapters or options.swap or options.allow_strength is not None:
        require_swappable(read_manifest(folder, verify=False))
    if options.allow_off:
        base_graphs(folder)
    return named


def require_drift(folder: Path, options: ServeOptions, say: Callable[[str], None]) -> tuple[Reference, ...]:
    """What the server's prompts are compared with; ``say`` is told where that can show nothing.

    Raises:
        UsageError: an option of drift cannot act, or no window of the size that was asked for can raise an alarm.
        InvalidArtifact: what the export says of its calibration is damaged.
    """
    none = options.swap or not options.drift_window
    found = () if none else references_of(folder, read_manifest(folder, verify=False))
    own = "an export with own adapters that were calibrated"
    options.require_use(("drift_window", "drift_false_alarms"), bool(found), own)
    least = least_window(found, options.drift_false_alarms)
    if not found or (least is not None and least <= options.drift_window):
        return found
    window, alarms = (spell(ServeOptions, name) for name in ("drift_window", "drift_false_alarms"))
    no_alarm = f"With this calibration and {alarms} {options.drift_false_alarms:g} {options.drift_window} prompts"
    advice = f"Pass {window} {least} or more, or 0, which compares nothing."
    if least is not None and options.given("drift_window"):
        raise UsageError(f"{no_alarm} can raise no alarm of drift, whatever they are.", advice)
    say(f"{no_alarm} can raise no alarm of drift: its records are too few")
    return found


def require_strength(folder: Path, manifest: ExportManifest, swaps: Sequence[Swap], most: float) -> None:
    """Refuse a strength that requests could not choose.

    Args:
        folder: of the export.
        swaps: what else than its own adapters would be scaled.
        most: the largest strength.

    Raises:
        UsageError: the export's adapters have no strength, or the largest is too large for the graphs.
        SafetykitError: their parameters cannot be read.
    """
    strengths(manifest)
    for swap in (swap_in(folder, manifest, manifest), *swaps):
        scaled(swap, manifest, most)
