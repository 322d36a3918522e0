"""`safetykit fit METHOD`: one module per method."""

from __future__ import annotations

import typer

from . import vlm_guard

fit = typer.Typer(no_args_is_help=True, help="Fit a method on records and write the adapter folder.")
fit.command("vlm-guard")(vlm_guard.fit)
