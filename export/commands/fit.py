"""`safetykit fit`: the commands of all methods, which may stand on the weights of an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...toolkit.commands.fitting import fit_group

if TYPE_CHECKING:
    from ..parity.graph_base import GraphBase


def _open_base(folder: Path) -> GraphBase:
    from ..parity.graph_base import GraphBase

    return GraphBase.read(folder)


fit = fit_group(_open_base)
