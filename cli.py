"""The command line. Commands import what they need when they run, so that --help is fast.

Exit codes: 0 ok, 1 internal error, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed,
6 signature failed, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .export.commands.diagnose import diagnose
from .toolkit.commands import fit
from .toolkit.commands.index import index
from .toolkit.commands.lora import lora
from .toolkit.commands.options import (
    Adapters,
    Data,
    ExternalIndex,
    Json,
    Limit,
    MaxNewTokens,
    MaybeData,
    Model,
    Overwrite,
    Provider,
    Swap,
    System,
    WrongBase,
)

app = typer.Typer(
    name="safetykit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok, 2 usage, 3 invalid artifact, 4 wrong base model, 5 parity failed, 6 signature failed.",
)

CPU = ("CPUExecutionProvider",)
INTERRUPTED = 130

app.add_typer(fit, name="fit")
app.add_typer(index, name="index")


@app.callback()
def _root() -> None:
    """Fit safety adapters for vision-language models, bake them into ONNX graphs, prove that nothing changed."""
    # Libraries' own bars and notes would drown ours; set before they are imported, and only if the user did not.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for everything the demo makes.")] = Path(
        "safetykit-demo"
    ),
    checkpoint: Annotated[str, typer.Option(help="Which reference VLM: mild or severe.")] = "mild",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """The whole loop on the bundled reference VLM: fit, export, parity, evaluation, card."""
    from .export.commands.demo import run_demo
    from .toolkit.commands import console, views

    with console.steps() as say:
        result = run_demo(out, checkpoint, overwrite=overwrite, progress=say)
    console.emit(result, as_json=as_json, human=views.demo)


@app.command()
def inspect(model: Model, as_json: Json = False) -> None:
    """Parts, sites, layer count, fingerprint, and whether it can be exported."""
    from .toolkit.commands import console, views
    from .toolkit.data.sources import model_path
    from .toolkit.families import exportable
    from .toolkit.model.vlm import VLM

    vlm = VLM.from_pretrained(model_path(model))
    console.emit({**vlm.describe(), "export": exportable(vlm.model.config)}, as_json=as_json, human=views.inspect)


app.command()(diagnose)


@app.command(name="eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, reference:mild / reference:severe, or export folder.")
    ],
    data: Data,
    adapter: Adapters = None,
    split: Annotated[str, typer.Option(help="Which split.")] = "test",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 32,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Also write the evaluation, decisions included.")
    ] = None,
    provider: Provider = None,
    external_index: ExternalIndex = None,
    swap: Swap = None,
    system: System = "",
    allow_wrong_base: WrongBase = False,
    as_json: Json = False,
) -> None:
    """Answer records with a checkpoint or an export, and count per carrier; resumes where it was interrupted."""
    from .export.commands.evaluation import evaluate_model
    from .toolkit.commands import console, views

    with console.progress_bar("answering") as update:
        result = evaluate_model(
            model,
            data,
            adapter or [],
            split=split,
            limit=limit,
            max_new_tokens=max_new_tokens,
            out=out,
            providers=provider or CPU,
            allow_wrong_base=allow_wrong_base,
            external_index=external_index,
            swap=swap or [],
            system=system,
            progress=update,
        )
    value = result.model_dump(mode="json", exclude={"decisions"})
    console.emit(value, as_json=as_json, human=views.evaluation)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", help="Export folder to write.")],
    adapter: Adapters = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX (the only format).")] = True,
    data: MaybeData = None,
    split: Annotated[str, typer.Option(help="Which split decisions are compared on.")] = "test",
    limit: Limit = None,
    max_new_tokens: MaxNewTokens = 32,
    precision: Annotated[str, typer.Option(help="fp32, fp16 or int4; int8 with --base-onnx.")] = "fp32",
    mode: Annotated[
        str,
        typer.Option(help="bake beside the base's weights, fold into them (affine ops), or hot-swap, open to others."),
    ] = "bake",
    base_onnx: Annotated[Path | None, typer.Option(help="Put the adapter into these base graphs.")] = None,
    provider: Provider = None,
    base_model: Annotated[str | None, typer.Option(help="How the card calls the base, such as org/name.")] = None,
    base_license: Annotated[str | None, typer.Option(help="Licence of the base, for the card.")] = None,
    layout: Annotated[
        str, typer.Option(help="For which runtime: onnx (plain files), transformers.js, genai or triton.")
    ] = "onnx",
    enforce: Annotated[
        bool, typer.Option("--enforce", help="Have the graph itself force a detector's refusals.")
    ] = False,
    external_index: ExternalIndex = None,
    recalibrate: Annotated[
        bool,
        typer.Option("--recalibrate", help="Match thresholds to the graphs, on calibration records of --data."),
    ] = False,
    max_flips: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of records whose decision may flip; by default 0, at fp16 0.002, at int4 0.2."
        ),
    ] = None,
    allow_wrong_base: WrongBase = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Bake adapters into ONNX graphs; the folder appears only if parity with PyTorch holds.

    With --data, decisions are compared on those records and the card gets its evaluation.
    """
    from .export.commands.evaluation import export_with_documents
    from .toolkit.commands import console, views

    with console.steps() as say:
        result = export_with_documents(
            model,
            out,
            adapter or [],
            data=data,
            split=split,
            limit=limit,
            max_new_tokens=max_new_tokens,
            precision=precision,
            mode=mode,
            base_onnx=base_onnx,
            providers=provider or CPU,
            max_flips=max_flips,
            recalibrate=recalibrate,
            allow_wrong_base=allow_wrong_base,
            enforce=enforce,
            layout=layout,
            external_index=external_index,
            overwrite=overwrite,
            base_model=base_model,
            base_license=base_license,
            progress=say,
        )
    console.emit(result, as_json=as_json, human=views.export)


app.command()(lora)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Adapter or export folder.")],
    model: Annotated[str | None, typer.Option(help="Checkpoint, to run parity again.")] = None,
    adapter: Adapters = None,
    swap: Swap = None,
    external_index: ExternalIndex = None,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Check every file against the manifest, the card against its data, and parity if --model is given."""
    from .export.commands.evaluation import verify_folder
    from .toolkit.commands import console, views

    with console.steps() as say:
        result = verify_folder(
            folder,
            model,
            adapter or [],
            providers=provider or CPU,
            external_index=external_index,
            swap=swap or [],
            progress=say,
        )
    console.emit(result, as_json=as_json, human=views.verify)


@app.command()
def run(
    folder: Annotated[Path, typer.Argument(help="Export folder.")],
    prompt: Annotated[list[str], typer.Option("--prompt", help="What the user says; repeat for a batch.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="One for all prompts, one each, or several for a single one.")
    ] = None,
    max_new_tokens: MaxNewTokens = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0, help="Nucleus of sampling.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    swap: Swap = None,
    system: System = "",
    external_index: ExternalIndex = None,
    provider: Provider = None,
    as_json: Json = False,
) -> None:
    """Generate with the exported model under ONNX Runtime."""
    from .export.runtime.answer import answer
    from .toolkit.commands import console, views

    result = answer(
        folder,
        prompt,
        image or [],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        providers=provider or CPU,
        external_index=external_index,
        swap=swap or [],
        system=system,
    )
    console.emit(result, as_json=as_json, human=views.answers)


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="Export folder.")],
    check: Annotated[bool, typer.Option("--check", help="Only check that the card says what its data says.")] = False,
    as_json: Json = False,
) -> None:
    """Write the model card and the HTML report again from the folder's data, or check them."""
    from .export.commands.evaluation import card_of
    from .toolkit.commands import console, views

    console.emit(card_of(folder, check=check), as_json=as_json, human=views.card)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, which ONNX Runtime package, and which providers a session really gets."""
    from .export.commands.doctor import examine
    from .toolkit.commands import console, views

    console.emit(examine(), as_json=as_json, human=views.doctor)


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
