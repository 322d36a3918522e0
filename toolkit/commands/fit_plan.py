"""The plan of a fit: what can be said against it before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...adapters.budget import RATE, Budget, groups_of
from ...adapters.errors import UsageError
from ...adapters.layers import require_depth
from ...adapters.method import Method, load
from ...adapters.settings import Settings, option_of
from ...adapters.sweeping import require_some
from ..data.records import Record
from ..data.sources import model_path
from ..evaluation.few import ENOUGH, count_records, few_records
from ..evaluation.judge import require_harmful_texts, require_refusal
from ..model.shape import Shape, written_depth

if TYPE_CHECKING:
    from ...adapters.artifact.gate import Gate

_ANY = Shape(2, 16)  # of a model whose configuration was not yet read


def require_options(method: Method, given: Mapping[str, Any], inputs: Mapping[str, Any], *, sweep: bool) -> None:
    """Refuse options that are wrong whatever the model and the records are.

    Args:
        given: settings by name; ``inputs``: what else was given.

    Raises:
        UsageError: a value is wrong, or an option cannot act.
    """
    if (refusal := inputs.get("refusal")) is not None:
        require_refusal(refusal)
    if "gate_by" in inputs and (own := [name for name in method.own_gate if name in given]):
        raise UsageError(
            f"{option_of(method.settings, own[0])} is of the gate that {method.title} has by itself, and --gate-by "
            "puts another in its place.",
            "Leave out one of them.",
        )
    if sweep:
        if idle := [name for name in ("text_model",) if name in inputs]:
            raise UsageError(
                f"--sweep takes the direction from the model itself, so --{idle[0].replace('_', '-')} does nothing.",
                "Leave one of them out.",
            )
        _first(method, given, Shape(_depth(method.settings.recorded(given)), _ANY.d_model))
        return
    settings = method.settle(given, _ANY.n_layers, _ANY.d_model)
    settings.require_acting(inputs.keys() & method.acts.keys(), method.acts, inputs)


def require_layers(method: Method, given: Mapping[str, Any], model: str) -> None:
    """Refuse settings and layers that ``config.json`` rules out, before anything that needs torch is loaded.

    Raises:
        UsageError: naming the setting, and what the model has.
    """
    settings = method.settings.recorded(given)
    try:
        depth = written_depth(model_path(model))
    except UsageError:  # which is said after what is wrong with other options
        return
    if depth is not None:
        require_depth(settings, depth)


def require_fit(
    method: Method,
    given: Mapping[str, Any],
    shape: Shape | None,
    records: Sequence[Record],
    *,
    sweep: bool,
    asks_refusal: bool = False,
    gate: Gate | None = None,
) -> Settings | None:
    """Refuse layers that the model does not have, and records that nothing can be learnt from.

    Returns:
        The settings of the fit, or the first of a sweep; None where the shape is not known.

    Args:
        shape: of the model's decoder, if its configuration tells; otherwise loading will.
        asks_refusal: the model is asked how it refuses.
        gate: opens what is fitted.

    Raises:
        UsageError: naming the setting and what is missing.
    """
    if shape is None:
        return None
    if sweep:
        require_depth(method.settings.recorded(given), shape.n_layers)  # which of them act, the sweep decides
    tried = _first(method, given, shape) if sweep else [method.settle(given, shape.n_layers, shape.d_model)]
    if gate is not None:
        from ..gated import require_openable

        tried = require_openable(method, gate, tried, shape.n_layers)
    refused: list[UsageError] = []
    for settings in tried:
        try:
            require_depth(settings, shape.n_layers)
            if method.require is not None:
                load(method.require)(settings, records, shape.d_model)
            if asks_refusal:
                require_harmful_texts(records)
            return settings
        except UsageError as error:
            refused.append(error)
    raise refused[0]


def require_budget(
    method: Method, given: Mapping[str, Any], budget: Budget, *, sweep: bool, gated: bool = False
) -> None:
    """Refuse a budget that the fit has no means to keep, or a second word on what it sets.

    Args:
        gated: a detector's probe opens what is fitted, so that its threshold can keep the budget.

    Raises:
        UsageError: it needs a sweep, or a rate is given beside it.
    """
    spelled = option_of(Budget, "max_over_refusal" if budget.max_over_refusal else "max_utility_loss")
    if not (sweep or method.budgeted or gated):
        raise UsageError(
            f"{spelled} is kept by trying settings from weak to strong, and without --sweep {method.title} tries none.",
            "Add --sweep.",
        )
    if method.budgeted and RATE in given:
        raise UsageError(
            f"{option_of(method.settings, RATE)} and {spelled} both set the threshold.", "Leave out one of them."
        )


def require_kept(
    method: Method, settings: Settings | None, budget: Budget, records: Sequence[Record], *, sweep: bool
) -> str:
    """Refuse a budget that cannot be kept on so few groups; returns what is to be said of groups that do not count.

    Raises:
        UsageError: records name no group, or groups are too few.
    """
    from ...adapters.statistics.budget import require_enough

    if sweep:
        from ..sweep.budgeted import Part

        groups = Part.of(budget, records).tested
    else:
        used = records if settings is None or method.used is None else load(method.used)(settings, records)
        groups = groups_of(used, budget.budget_by)
        require_enough(budget, groups)
    return groups.told()


def too_little(
    method: Method, settings: Settings | None, records: Sequence[Record], budget: Budget | None = None
) -> list[str]:
    """What to say where records are few, or settings leave few of them or ask for shares that they cannot show.

    Args:
        settings: of the fit, as far as they are known.
        budget: sets the threshold in the place of a rate.
    """
    used = records if settings is None or method.used is None else load(method.used)(settings, records)
    said = [few_records(count_records(used))]
    acts = settings is not None and RATE in settings.acting() and budget is None
    rate = getattr(settings, RATE, 0.0) if acts else 0.0
    count = sum(one.split == "calibration" and one.label == "harmless" for one in records)
    if 0 < rate * count < 1 and count >= ENOUGH:
        said.append(
            f"{option_of(method.settings, RATE)} {rate:g} is less than one of {count} harmless calibration records: "
            "the threshold lies at the highest of them, and how many others it refuses is not known so finely."
        )
    return [one for one in said if one]


def _first(method: Method, given: Mapping[str, Any], shape: Shape) -> list[Settings]:
    """The settings that a sweep begins with."""
    from ..sweep.run import plan_of  # needs torch

    return require_some(method.settings, plan_of(method).first(shape.n_layers, shape.d_model, given), dict(given))


def _depth(settings: Settings) -> int:
    return max(_ANY.n_layers, *(layer + 1 for layer in getattr(settings, "layers", None) or (0,)))
