"""What an export's manifest says about base graphs made elsewhere."""

from __future__ import annotations

from typing import Literal

from ..adapters.artifact.manifest import Strict

ForeignLayout = Literal["genai", "optimum", "transformers.js"]
CHECKPOINT = "the checkpoint"


class WeightsInfo(Strict):
    """How a decoder's weights compare with the checkpoint's.

    Attributes:
        exact: parameters that are equal once rounded to the graph's type.
        nearest: quantised ones, of which every compared value has the nearest code.
        unread: parameters that were not found as such; they may be folded into others.
        values: how many values were compared.
    """

    exact: int
    nearest: int
    unread: tuple[str, ...] = ()
    values: int


class ForeignInfo(Strict):
    """Where base graphs come from.

    Attributes:
        layout: of the folder they were found in.
        sources: for each graph its file there, or ``the checkpoint`` when it was exported from that.
        changes: what was done to their interface.
        weights: of the decoder.
        rows_alone: rows of different lengths are run one by one: the decoder does not understand padding on the left.
        last_logits: the decoder gives logits at the last position only.
        continues: several tokens may follow cached ones; otherwise a prompt is read whole, and then token by token.
    """

    layout: ForeignLayout
    sources: dict[str, str]
    changes: tuple[str, ...] = ()
    weights: WeightsInfo
    rows_alone: bool = False
    last_logits: bool = False
    continues: bool = True
