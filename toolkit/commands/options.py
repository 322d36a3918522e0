"""Options that several commands share. No command module imports torch before it runs, so that --help is fast."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Model = Annotated[str, typer.Argument(help="Checkpoint folder, or reference:mild / reference:severe.")]
Data = Annotated[str, typer.Option("--data", help="Records: JSONL file or folder, or `reference`.")]
Adapters = Annotated[list[Path] | None, typer.Option("--adapter", help="Adapter folder; repeat to stack.")]
WrongBase = Annotated[
    bool, typer.Option("--allow-wrong-base", help="Accept an adapter fitted on another model; the card shows it.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]

# Of fit commands.
AdapterOut = Annotated[Path, typer.Option("-o", "--out", help="Adapter folder to write.")]
Layers = Annotated[str | None, typer.Option(help="Decoder layers from 0, such as 3-5 or 2,4.")]
ScopeName = Annotated[str | None, typer.Option("--scope", help="all, vision, text or last.")]
PhaseName = Annotated[str | None, typer.Option("--phase", help="prefill, decode or both.")]
FalsePositives = Annotated[
    float | None, typer.Option("--false-positive-rate", help="Share of harmless calibration records it may hit.")
]
Sweep = Annotated[bool, typer.Option("--sweep", help="Choose what is not given on calibration records.")]
With = Annotated[
    list[Path] | None, typer.Option("--with", help="Adapter that is applied while fitting; repeat to stack.")
]

# Of detectors.
Space = Annotated[str | None, typer.Option("--space", help="hidden or logits: what the probe's penalty is on.")]
RefusalText = Annotated[
    str | None, typer.Option("--refusal", help="The fixed answer; by default the model's own most frequent refusal.")
]
Fraction = Annotated[float | None, typer.Option("--fraction", help="Share of the fit records to use, such as 0.05.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Of draws and folds.")]
ChannelMapFolder = Annotated[
    Path | None, typer.Option("--map", help="Channel map of safetykit diagnose; names the layers.")
]
