"""`safetykit fit METHOD`: one module per method."""

from __future__ import annotations

import typer

from . import care, one_pass, retrieval, sasa, tga, vlm_guard

fit = typer.Typer(no_args_is_help=True, help="Fit a method on records and write the adapter folder.")
fit.command("care")(care.fit)
fit.command("one-pass")(one_pass.fit)
fit.command("retrieval")(retrieval.fit)
fit.command("sasa")(sasa.fit)
fit.command("tga")(tga.fit)
fit.command("vlm-guard")(vlm_guard.fit)
