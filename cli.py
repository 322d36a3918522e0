"""The command line. Commands import what they need when they run, so that --help is fast.

Exit codes: 0 ok, 1 internal error, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed,
6 signature failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from . import __version__
from .export.commands.card import card
from .export.commands.demo import demo
from .export.commands.diagnose import diagnose
from .export.commands.doctor import doctor
from .export.commands.eval import evaluate
from .export.commands.export import export
from .export.commands.run import run
from .export.commands.verify import verify
from .toolkit.commands import console, fit
from .toolkit.commands.common import with_common_options
from .toolkit.commands.index import index
from .toolkit.commands.inspect import inspect
from .toolkit.commands.lora import lora

app = typer.Typer(
    name="safetykit",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its panels cut long option names off at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 1 internal error, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed, "
    "6 signature failed, 130 interrupted.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"safetykit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fit safety adapters for vision-language models, bake them into ONNX graphs, prove that nothing changed."""


def _register(function: Callable[..., None], example: str, name: str | None = None) -> None:
    app.command(name=name, epilog=f"Example: safetykit {example}")(function)


_register(demo, "demo -o safetykit-demo")
_register(inspect, "inspect ./my-vlm")
_register(diagnose, "diagnose ./my-vlm --data records/ -o map")
app.add_typer(fit, name="fit")
_register(evaluate, "eval ./my-vlm --data records/ --adapter adapter", name="eval")
_register(export, "export ./my-vlm --adapter adapter --data records/ -o export")
_register(verify, "verify export --model ./my-vlm --adapter adapter")
_register(run, 'run export --prompt "What is this?" --image photo.png')
_register(card, "card export --check")
_register(lora, "lora ./my-vlm --adapter care -o care-lora")
app.add_typer(index, name="index")
_register(doctor, "doctor")
with_common_options(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure becomes two readable lines and an exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    console.start()
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(typed, prog_name="safetykit", standalone_mode=False)
        if code == console.INTERRUPTED:  # the parser turns Ctrl-C into this code without a word
            raise KeyboardInterrupt
    except SystemExit:
        raise
    except BrokenPipeError:  # whoever read stdout, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseException as error:  # the one place where anything becomes a message
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            sys.exit(2)
        sys.exit(console.report_failure(error, as_json="--json" in typed))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
