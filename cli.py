"""The command line. Commands import what they need when they run, so that --help is fast."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from . import __version__
from .toolkit.commands import console, signals
from .toolkit.commands.common import with_common_options
from .toolkit.commands.exit_codes import listed
from .toolkit.distributed import job


@dataclass(frozen=True)
class Command:
    """A command or a group of commands, as the list of all commands shows it.

    Attributes:
        place: ``module:attribute`` of its function or of its ``Typer``, imported only if the command is typed.
        example: what follows ``safetykit`` in a telling call; a group's commands have their own.
    """

    name: str
    place: str
    help: str
    example: str = ""

    def load(self) -> Any:
        """The function, or the group."""
        module, _, attribute = self.place.partition(":")
        return getattr(import_module(module, __package__), attribute)


COMMANDS = (
    Command(
        "demo",
        ".export.commands.demo:demo",
        "The whole loop on the bundled reference VLM. Fit, export, parity, evaluation, latency, card.",
        "demo -o safetykit-demo",
    ),
    Command(
        "quickstart",
        ".export.commands.quickstart:quickstart",
        "From a checkpoint alone to figures before and after.\n\n"
        "Makes records, asks the model as it is, fits, exports and asks the export; then says what would make it "
        "better. It goes on where it was interrupted. What cannot be exported is fitted and asked in PyTorch.",
        "quickstart ./my-vlm -o quickstart",
    ),
    Command(
        "inspect",
        ".toolkit.commands.inspect:inspect",
        "Parts, sites, layers, fingerprint; whether it can be exported.",
        "inspect ./my-vlm",
    ),
    Command(
        "diagnose",
        ".export.commands.diagnose:diagnose",
        "Causal map: which layers and neurons carry refusal. With plots; it resumes where it was interrupted.",
        "diagnose ./my-vlm --data records/ -o map",
    ),
    Command("data", ".toolkit.commands.data:data", "Make records of the data you have, check, split and show them."),
    Command("fit", ".export.commands.fit:fit", "Fit a method on records and write the adapter folder."),
    Command(
        "calibrate",
        ".toolkit.commands.calibrate:calibrate",
        "Choose a fitted adapter's threshold or strength anew, under a budget, in the stack that it runs in.",
        "calibrate ./my-vlm --adapter probe --with guard --data records/ --max-over-refusal 0.05 -o calibrated",
    ),
    Command(
        "eval",
        ".export.commands.eval:evaluate",
        "Answer records with a checkpoint or an export. Counts per carrier; resumes where it was interrupted.",
        "eval ./my-vlm --data records/ --adapter adapter",
    ),
    Command(
        "compare",
        ".export.commands.compare:compare",
        "Models, defences, benchmarks and judges beside each other, from a YAML file to a report.\n\n"
        "Adapters are fitted and kept, every cell is answered once, differences are tested record by record. The same "
        "command goes on where it was interrupted.",
        "compare --config grid.yaml -o comparison",
    ),
    Command(
        "judge",
        ".toolkit.commands.judge:judge",
        "Judge the answers of an evaluation again, by other judges. No model is asked.",
        "judge evaluation.json --data records/ --judge learned --judge phrases -o judged.json",
    ),
    Command(
        "export",
        ".export.commands.export:export",
        "Bake adapters into ONNX graphs.\n\n"
        "The folder appears only if parity with PyTorch holds. Without --adapter the model is exported as it is: "
        "graphs for --base-onnx. With --data, decisions are compared on those records and the card gets its "
        "evaluation.",
        "export ./my-vlm --adapter adapter --data records/ -o export",
    ),
    Command(
        "attack",
        ".toolkit.commands.attack:attack",
        "Make pictures that a defence is to withstand: adversarial ones, and corrupted ones. For evaluation.",
    ),
    Command(
        "verify",
        ".export.commands.verify:verify",
        "Check files, card and, with --model, parity.\n\n"
        "Every file is compared with the manifest, the card with its data, and ONNX Runtime's answers with PyTorch's.",
        "verify export --model ./my-vlm --adapter adapter",
    ),
    Command(
        "sign",
        ".export.commands.sign:sign",
        "Sign an adapter, index or export. Servers then accept it by their policy.",
        "sign export --key signing.pem",
    ),
    Command(
        "run",
        ".export.commands.run:run",
        "Generate with the exported model under ONNX Runtime.",
        'run export --prompt "What is this?" --image photo.png',
    ),
    Command(
        "serve",
        ".serve.command:serve",
        "Answer OpenAI's chat completions with an export, the detector's verdict included.",
        "serve export --port 8000",
    ),
    Command(
        "card",
        ".export.commands.card:card",
        "Write the model card and the HTML report again, or check them.",
        "card export --check",
    ),
    Command(
        "lora",
        ".toolkit.commands.lora:lora",
        "Write affine adapters as a LoRA folder that peft loads. For runtimes that serve LoRA.",
        "lora ./my-vlm --adapter care -o care-lora",
    ),
    Command("index", ".toolkit.commands.index:index", "Make and search indexes of texts retrieved for pictures."),
    Command(
        "doctor",
        ".export.commands.doctor:doctor",
        "Versions, and which providers ONNX Runtime really gives.",
        "doctor",
    ),
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"safetykit {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fit safety adapters for vision-language models, bake them into ONNX graphs, prove that nothing changed."""


def _unopened() -> None:
    """Stands for a command that is listed and not run."""


def application(opened: Collection[str] | None = None) -> typer.Typer:
    """The command line.

    Args:
        opened: names of the commands whose options are wanted; of the others only the line in the list of commands
            is there, and nothing is imported for it. None: all of them.
    """
    app = typer.Typer(
        name="safetykit",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # its panels cut long option names off at 80 columns
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=f"Exit codes: {listed()}.",
    )
    app.callback()(_root)
    for one in COMMANDS:
        wanted = opened is None or one.name in opened
        found: Callable[..., None] | typer.Typer = with_common_options(one.load()) if wanted else _unopened
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=one.name, help=one.help)
        else:
            app.command(one.name, help=one.help, epilog=f"Example: safetykit {one.example}")(found)
    return app


def _opened_by(typed: Collection[str]) -> Collection[str] | None:
    """The commands that may be meant by what is typed; a shell that completes says elsewhere what that is."""
    return None if "_SAFETYKIT_COMPLETE" in os.environ else typed


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every failure becomes two readable lines and an exit code."""
    # What a launcher stops must not wait for processes that never come: there, signals do what the system does.
    with signals.heard() if job.launched() == 1 else nullcontext(), console.warnings_told():
        _run(sys.argv[1:] if arguments is None else arguments)


def _run(typed: list[str]) -> NoReturn:
    console.start()
    part = job.start()
    try:
        command: Any = typer.main.get_command(application(_opened_by(typed)))
        code = command.main(typed, prog_name="safetykit", standalone_mode=False)
        if code == console.INTERRUPTED:  # the parser turns Ctrl-C into this code without a word
            raise KeyboardInterrupt
        sys.stdout.flush()
    except SystemExit:
        raise
    except BrokenPipeError:  # whoever read stdout, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseException as error:  # the one place where anything becomes a message
        if not part.speaks():
            part.leave(console.explain(error)[2])
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error, file=sys.stderr)
            sys.exit(2)
        part.leave(console.report_failure(error, as_json="--json" in typed))
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
