"""What the command line's exit codes mean, told once: in ``--help``, on the site and in scripts."""

from __future__ import annotations

import signal

# By code. Those of signals are 128 and the signal's number, as shells count them.
EXIT_CODES = {
    0: "ok",
    1: "internal error",
    2: "usage",
    3: "invalid artifact",
    4: "wrong base model",
    5: "parity failed",
    6: "signature failed",
    7: "another process of the job gone",
    8: "output not written (disk full, read-only)",
    9: "a server does not answer",
    129: "hung up (SIGHUP)",
    130: "interrupted (Ctrl-C)",
    143: "stopped (SIGTERM)",
}


def listed() -> str:
    """All in one line."""
    return ", ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())


def of_signal(number: int) -> int:
    """The code of a process that a signal ended."""
    return 128 + signal.Signals(number)
