"""What every benchmark shares: its command line, its results on disk, interleaved timing, memory and tables.

A benchmark is a module with ``main(arguments=None)``, called as ``python bench/NAME.py``. Its docstring is its help;
``arguments(__doc__, quick={…})`` gives it ``--quick``, a setting that takes seconds and whose figures mean nothing.
Long ones keep what is finished in their output folder and go on there.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safetykit.adapters.artifact.held import remove
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.artifact.output import claimed, claimed_file, write_output
from safetykit.adapters.errors import SafetykitError
from safetykit.export.document.latency import median_ratio

CHECKPOINTS = ("mild", "severe")
PAUSE = 0.02  # seconds between timed runs; ONNX Runtime's threads go on spinning, and would take the next arm's cores
UNMODIFIED, CONTROL = "unmodified", "control"  # arms of every latency benchmark; the control is the former again


class Arguments(argparse.ArgumentParser):
    """A parser whose ``--quick`` changes defaults; what is given stands."""

    quick: Mapping[str, Any] = {}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As usual; see the class."""
        given = sys.argv[1:] if args is None else list(args)
        if self.quick and "--quick" in given:
            self.set_defaults(**self.quick)
        return super().parse_args(given, namespace)


def arguments(doc: str | None, quick: Mapping[str, Any] | None = None) -> Arguments:
    """A benchmark's parser.

    Args:
        doc: its module's docstring.
        quick: values that ``--quick`` gives to options that are not given.
    """
    parser = Arguments(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if quick:
        parser.quick = quick
        words = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in quick.items())
        parser.add_argument("--quick", action="store_true", help=f"in seconds, to see that it runs: {words}")
    return parser


def results_folder(parser: argparse.ArgumentParser) -> None:
    """The options of benchmarks on the reference VLM: where results go, and which checkpoints are measured."""
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, action="append", help="both by default")


def run(main: Callable[[], int | None]) -> None:
    """End the process as ``main`` says; a failure is one line and its exit code.

    SIGTERM and SIGHUP end it as Ctrl-C does, so that the servers that ``main`` has started end, too.
    """

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    for one in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(one, leave)
    try:
        code = main()
    except SafetykitError as error:
        print(error, file=sys.stderr)
        code = error.exit_code
    sys.exit(code or 0)


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def one_thread() -> None:
    """PyTorch on one thread: on a model as small as the reference VLM, threads cost more than they give."""
    torch.set_num_threads(1)


def read_results(path: Path, start: Any = None) -> Any:
    """Results that an earlier run left, or ``start`` ({} by default)."""
    if path.is_file():
        return json.loads(path.read_text())
    return {} if start is None else start


def write_results(path: Path, results: Any) -> None:
    """Results as canonical JSON; an interruption leaves the former ones."""
    write_output(path, canonical_json(results))


def write_table(path: Path, text: str) -> None:
    """A table beside its results, and on the screen."""
    write_output(path, text.encode())
    print(text)


def cleared(out: Path) -> Path:
    """A path where nothing lies; what did must be an output of safetykit's.

    Raises:
        UsageError: it was not, and is left alone.
    """
    with claimed_file(out, overwrite=True, keys=("model", "rows")) if out.is_file() else claimed(out, overwrite=True):
        remove(out)
    return out


def emit(value: Any) -> None:
    """A value as JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def percent(rate: Mapping[str, Any] | None) -> str:
    """12.3 % (9–16), or a dash."""
    if not rate:
        return "–"
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def parity_figures(parity: Any) -> dict[str, Any]:
    """What benchmarks keep of a parity report."""
    return {"passed": parity.passed, "logits": parity.worst("logits"), "flips": len(parity.flips)}


def rows_by_group(rows: Sequence[Any]) -> dict[str, Any]:
    """Rows of an evaluation as JSON, by their group."""
    return {row.group: row.model_dump(mode="json") for row in rows}


def ratios(times: Mapping[str, np.ndarray], arms: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Per phase each arm's time over the unmodified one's, with the control and its noise.

    Args:
        times: by arm [rounds, 2], prefill and decode, in seconds, with arms ``unmodified`` and ``control``.
        arms: those to compare.
    """
    phases: dict[str, dict[str, Any]] = {}
    for at, phase in enumerate(("prefill", "decode")):
        control = median_ratio(times[CONTROL][:, at], times[UNMODIFIED][:, at], 0)
        noise = max(control.high, 1 / control.low)
        phases[phase] = {"control": control.model_dump(), "noise": noise}
        for name in arms:
            ratio = median_ratio(times[name][:, at], times[UNMODIFIED][:, at], 0)
            verdict = "cost detected" if ratio.low > noise else "no cost detected"
            phases[phase][name] = {**ratio.model_dump(), "verdict": verdict}
    return phases


def median_ms(times: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Median milliseconds of every arm, prefill and decode."""
    return {name: (1000 * np.median(values, axis=0)).tolist() for name, values in times.items()}


def peak_mb() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
