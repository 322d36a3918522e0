"""What may be chosen about CARE; :mod:`.care` says what the choices mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ..artifact.sites import Phase, Scope, Site
from ..layers import Layers
from ..method import load
from ..ranges import Strength
from ..settings import Settings, setting
from ..statistics.choices import Centre, Contrast, Selection, Shrinkage, SubspaceVariant, TokenChoice

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example
    from ..statistics.tokens import TokenSource
    from .statistics import CareStatistics

Fusion = Literal["adaptive", "sequential", "parallel", "masked", "injection"]
Modalities = Literal["both", "visual", "textual"]
Where = Literal["mlp", "attn", "block"]

_PROJECTING = ("adaptive", "sequential", "parallel", "masked")
_UNMASKED = ("adaptive", "sequential", "parallel", "injection")
_CODE = "safetykit.adapters.care.care"


class CARE(Settings):
    """Fits CARE; see :mod:`safetykit.adapters.care.care` for the mathematics."""

    variant: SubspaceVariant = setting("corrected", "official to the letter, or corrected.")
    fusion: Fusion = setting(
        "adaptive",
        "How the corrections of both modalities are combined; sequential, parallel and injection are affine.",
        shown="masked; official or with one scope or modality: adaptive",
    )
    layers: Layers | None = setting(
        None, "Decoder layers that are changed, from 0, such as 3-5 or 2,4.", shown="the middle half"
    )
    textual_layers: Layers | None = setting(
        None,
        "Layers of the textual subspace, where they differ.",
        acts={"modalities": ("both", "textual")},
        shown="those of --layers",
    )
    rank: int = setting(
        8, "k, the dimension of each subspace.", option="k", shown="an eighth of the model's width", ge=1
    )
    alpha: Strength = setting(1.0, "α, the strength; 1 removes, more reflects.", acts={"fusion": _PROJECTING})
    beta: float = setting(1.0, "β: how much of the benign mean is put in.", acts={"fusion": "injection"}, ge=0)
    floor: float = setting(0.0, "Leave out directions with λ at or below this; the first always stays.", ge=0)
    contrast: Contrast = setting(
        "carrier",
        "What makes a record malicious: its label, its carrier too, or that the model answers it (behaviour).",
        shown="behaviour; official: carrier",
    )
    centre: Centre = setting("own", "What the malicious spread is about: its own mean, or the benign one.")
    shrinkage: Shrinkage = setting("ledoit-wolf", "How the benign covariance is shrunk.", acts={"variant": "corrected"})
    site: Where = setting(
        "mlp",
        "Output that is changed: mlp, attn or block.",
        acts={"variant": "corrected"},
        shown="block; official always has mlp",
    )
    modalities: Modalities = setting("both", "Which subspaces act.")
    selection: Selection = setting("none", "Pool the tokens that a kernel picks, or all of them (none).")
    visual_share: float = setting(
        1 / 8,
        "Share of image tokens that is pooled.",
        acts={"selection": "kernel", "modalities": ("both", "visual")},
        gt=0,
        le=1,
    )
    textual_share: float = setting(
        0.2,
        "Share of text tokens that is pooled.",
        acts={"selection": "kernel", "modalities": ("both", "textual")},
        gt=0,
        le=1,
    )
    with_response: bool = setting(
        False, "Pool the tokens of records' responses too.", acts={"modalities": ("both", "textual")}
    )
    scope: Scope = setting(
        "all", "Which tokens are changed: all, vision, text or the last one.", acts={"fusion": _UNMASKED}
    )
    phase: Phase = setting("both", "When: while the prompt is read, while the answer is written, or both.")

    @property
    def tokens(self) -> TokenChoice:
        """Which tokens the statistics come from."""
        return TokenChoice(self.selection, self.visual_share, self.textual_share, self.with_response)

    def source(self, layer: int) -> Site:
        """Where the statistics of ``layer`` come from."""
        return Site.block(layer) if self.variant == "official" else Site(self.site, layer)

    def fit(
        self, model: TokenSource, records: Iterable[Example], *, outcomes: Mapping[str, str] | None = None
    ) -> Adapter:
        """Fit on the ``fit`` split, all its carriers.

        Args:
            outcomes: for the contrast ``behaviour``, what the bare model does with harmful records, by id.

        Raises:
            UsageError: a role or a modality has no or too few records, k exceeds the width, a layer does not exist,
                or responses are to be pooled and there are none.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records, outcomes=outcomes)
        return adapter

    def solve(self, model: TokenSource, statistics: CareStatistics, records: Sequence[Example]) -> Adapter:
        """Turn the statistics of ``records`` into an adapter (no model is run)."""
        adapter: Adapter = load(f"{_CODE}:solve")(self, model, statistics, records)
        return adapter
