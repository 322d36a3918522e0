"""The command line. Commands import what they need when they run, so that --help is fast.

Exit codes: 0 ok, 1 internal error, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed,
6 signature failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from .export.commands.card import card
from .export.commands.demo import demo
from .export.commands.diagnose import diagnose
from .export.commands.doctor import doctor
from .export.commands.eval import evaluate
from .export.commands.export import export
from .export.commands.run import run
from .export.commands.verify import verify
from .toolkit.commands import fit
from .toolkit.commands.index import index
from .toolkit.commands.inspect import inspect
from .toolkit.commands.lora import lora

app = typer.Typer(
    name="safetykit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed, 6 signature failed.",
)

INTERRUPTED = 130


@app.callback()
def _root() -> None:
    """Fit safety adapters for vision-language models, bake them into ONNX graphs, prove that nothing changed."""
    # Libraries' own bars and notes would drown ours; set before they are imported, and only if the user did not.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


app.command()(demo)
app.command()(inspect)
app.command()(diagnose)
app.add_typer(fit, name="fit")
app.command(name="eval")(evaluate)
app.command()(export)
app.command()(verify)
app.command()(run)
app.command()(card)
app.command()(lora)
app.add_typer(index, name="index")
app.command()(doctor)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure becomes two readable lines and an exit code."""
    command: Any = typer.main.get_command(app)
    try:
        code = command.main(arguments, prog_name="safetykit", standalone_mode=False)
    except BaseException as error:  # the one place where anything becomes a message
        if isinstance(error, SystemExit):
            raise
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # usage errors of the option parser
            error.show()
            sys.exit(error.exit_code)
        from .toolkit.commands.console import report_failure

        sys.exit(report_failure(error))
    if code == INTERRUPTED:  # the parser turns Ctrl-C into this code without a word
        print("interrupted; no half-written file was left", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
