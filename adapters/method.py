"""A method, as it declares itself: one object that the command line, exports, cards and benches read.

Heavy parts are given as ``"package.module:attribute"`` and imported when they are needed, so that help stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from .settings import Condition, Settings

# What a fit may ask for besides its data and settings; the workbench provides it, and the command line has an option
# for each: a detector's refusal, a channel map and how many layers to take from it, adapters applied while fitting, a
# caption index and its encoder, a separate language model, going on with an interrupted fit, and a base export whose
# rounded weights the model runs with, and a fitted detector whose probe opens what is done.
Input = Literal["refusal", "map", "map_layers", "with", "index", "encoder", "text_model", "resume", "on", "gate_by"]
Lazy = str | Callable[..., Any] | tuple[Any, ...] | object


def load(part: Any) -> Any:
    """What ``"package.module:attribute"`` names; anything that is no text is returned as it is."""
    if not isinstance(part, str):
        return part
    module, _, attribute = part.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


@dataclass(frozen=True)
class Method:
    """How hidden states are changed or judged, from its settings to its section of the card.

    Attributes:
        name: as people type it, ``safetykit fit NAME``.
        title: as people read it.
        summary: one sentence, for help and tables.
        settings: what may be chosen.
        fit: ``(settings, workbench) -> Adapter``; see :class:`safetykit.adapters.protocols.Workbench`.
        example: options of a telling call, for help: ``--variant target --sweep``.
        data: what it is fitted on: labelled ``records`` or captioned pictures (``captions``).
        require: ``(settings, records, d_model) -> None``, which refuses records that nothing can be learnt from,
            before a model is loaded.
        used: ``(settings, records) -> records``: those that a fit with these settings looks at, if not all.
        takes: what a fit may ask for besides; ``needs``: what it cannot do without.
        acts: of what it takes, which settings it needs to have an effect.
        usual: ``(given, n_layers, d_model) -> settings``, where defaults depend on the model or on what is given.
        map: ``(given, channel map, count or None) -> settings by name``, from what a diagnosis found.
        sweep: a :class:`safetykit.adapters.sweeping.Plan`: what ``--sweep`` tries on calibration records.
        budgeted: a fit sets a threshold that can keep a :class:`~safetykit.adapters.budget.Budget` by itself; what has
            a sweep keeps one by choosing among its trials.
        ops: modules that define its ops.
        pushes: ``(settings, n_layers) -> sites`` where it acts, of what takes a detector's probe as its gate.
        own_gate: settings of the gate that it has without one.
        sections: a tuple of :class:`safetykit.adapters.section.Section`: what card and report show of its attachments.
        dtype: the type that the model must have for a fit, where that need not be the checkpoint's.
        recorded: how manifests call it, if not by its name.
    """

    name: str
    title: str
    summary: str
    settings: type[Settings]
    fit: Lazy
    example: str = ""
    data: Literal["records", "captions"] = "records"
    require: Lazy | None = None
    used: Lazy | None = None
    takes: tuple[Input, ...] = ()
    needs: tuple[Input, ...] = ()
    acts: Mapping[Input, tuple[Condition, ...]] = field(default_factory=dict)
    usual: Lazy | None = None
    map: Lazy | None = None
    sweep: Lazy | None = None
    budgeted: bool = False
    ops: tuple[str, ...] = ()
    pushes: Lazy | None = None
    own_gate: tuple[str, ...] = ()
    sections: Lazy = ()
    dtype: str | None = None
    recorded: str = ""

    @property
    def manifest_name(self) -> str:
        """What a manifest says under ``method``."""
        return self.recorded or self.name

    def settle(self, given: Mapping[str, Any], n_layers: int, d_model: int) -> Settings:
        """The settings of a fit on a model of this depth and width.

        Raises:
            UsageError: a value is wrong, or a given setting cannot act.
        """
        if self.usual is None:
            return self.settings(**given)
        found: Settings = load(self.usual)(given, n_layers, d_model)
        return found
