"""What may be chosen about the streaming guard; :mod:`.guard` says what the choices mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from ..budget import Budget
from ..layers import Layers
from ..method import load
from ..ranges import seed_setting
from ..settings import Settings, setting

if TYPE_CHECKING:
    from ..artifact.adapter import Adapter
    from ..protocols import Example, TrajectorySource

Action = Literal["ramp", "once"]

_CODE = "safetykit.adapters.streaming_guard.guard"


class StreamingGuard(Settings):
    """Fits the streaming guard; see :mod:`safetykit.adapters.streaming_guard.guard` for the mathematics."""

    action: Action = setting(
        "ramp",
        "ramp pushes at every token, the more the surer the probe is; once at the first token that opens the gate.",
    )
    layers: Layers | None = setting(
        None, "Blocks that the probe reads, such as 2,4,6; the last is pushed.", shown="those after 1/4, 1/2 and 3/4"
    )
    alpha: float = setting(2.0, "α, the strength of the push.", gt=0)
    rounds: int = setting(3, "Rounds in which the states that the probe learns from are chosen anew.", ge=1)
    hardest: int = setting(3, "States of each harmless record that it learns from in a round.", ge=1)
    tokens: int = setting(32, "Calls of an answer that are followed at most.", ge=1)
    false_positive_rate: float = setting(
        0.02, "Share of harmless calibration records whose gate may open anywhere in the answer.", ge=0, lt=1
    )
    seed: int = seed_setting("Of the cross-validation's folds.")
    allow_constant_gate: bool = setting(
        False, "Accept a gate that is open, or closed, on all that the fit has seen; manifest and card say so."
    )

    def fit(
        self,
        model: TrajectorySource,
        records: Iterable[Example],
        refuses: Callable[[str], bool],
        *,
        corrected_by: Sequence[Mapping[str, JsonValue]] = (),
        budget: Budget | None = None,
    ) -> Adapter:
        """Fit the probe on answers to the ``fit`` split and set its threshold on those to the ``calibration`` split.

        Args:
            model: as it will run: with the correctors applied that the guard will be stacked with.
            refuses: whether an answer is a refusal (``toolkit.evaluation.judge.is_refusal``).
            corrected_by: which correctors these are, for the manifest.
            budget: what the threshold keeps on new groups, in the place of ``false_positive_rate``: a gate that stays
                closed changes no answer.

        Raises:
            UsageError: a split or a label is missing, or a layer does not exist.
        """
        adapter: Adapter = load(f"{_CODE}:fit")(self, model, records, refuses, corrected_by=corrected_by, budget=budget)
        return adapter
