"""Stacks: a detector judges the states of the model as its correctors leave it, and belongs to these correctors.

A detector that was fitted on other states than it reads is wrong without a sign of it: beside a corrector that it has
never seen, SASA refused 60 % of harmless requests on the bundled reference VLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from ..errors import UsageError
from ..ops.op import Corrector
from .adapter import Adapter
from .manifest import RetrievalInfo
from .store import manifest_digest

CORRECTED_BY = "corrected_by"  # the hyperparameter of a detector that names what it was fitted under
_CHOICE = " To use this one all the same pass --allow-uncorrected-detector; the card then shows it."
_SHOWN = 12  # digits of a digest in messages


def describe_corrector(adapter: Adapter) -> dict[str, JsonValue]:
    """What a detector's manifest says about an adapter that it was fitted under."""
    return {
        "method": adapter.info.method,
        "variant": adapter.info.variant,
        "manifest_sha256": manifest_digest(adapter),
    }


def corrects(adapter: Adapter) -> bool:
    """Whether an adapter changes what a detector reads: states, weights, or the prompt."""
    acts = any(isinstance(item.make_op(), Corrector) for item in adapter.interventions)
    return acts or bool(adapter.updates) or _prefixes(adapter)


def require_reading(adapters: Sequence[Adapter]) -> None:
    """Refuse ops that read several blocks beside a branch, which runs some of these blocks a second time.

    Raises:
        UsageError: naming the op.
    """
    if not any(adapter.branch for adapter in adapters):
        return
    for item in (item for adapter in adapters for item in adapter.interventions if item.reads):
        raise UsageError(
            f"{item.op} at {item.site} reads several blocks, and the detector's branch runs blocks a second time.",
            "Stack it with a detector without a branch, such as one-pass.",
        )


def _prefixes(adapter: Adapter) -> bool:
    info = adapter.attachments.get("retrieval")
    return info is not None and RetrievalInfo.model_validate(info).prefix


def require_fitted_stack(
    adapters: Sequence[Adapter],
    names: Sequence[str | Path] | None = None,
    *,
    model: str = "MODEL",
    data: str = "DATA",
    allow: bool | None = False,
) -> bool:
    """Refuse a detector that was not fitted under exactly the correctors it stands with, in their order.

    Args:
        names: how the user called the adapters, such as their folders; for the command that fits the right detector.
        model, data: the same of model and records.
        allow: accept it; None where there is no such choice.

    Returns:
        Whether the stack holds together; False only with ``allow``.

    Raises:
        UsageError: it does not; with the command that makes one that does.
    """
    detector = next((adapter for adapter in adapters if adapter.detector is not None), None)
    if detector is None:
        return True
    called = {id(adapter): str(name) for adapter, name in zip(adapters, names or (), strict=False)}
    others = [adapter for adapter in adapters if adapter is not detector]
    idle = {manifest_digest(adapter) for adapter in others if not corrects(adapter)}
    present = [adapter for adapter in others if corrects(adapter)]
    recorded = [one for one in _recorded(detector) if one.get("manifest_sha256") not in idle]
    if [one.get("manifest_sha256") for one in recorded] == [manifest_digest(adapter) for adapter in present]:
        return True
    if allow:
        return False
    fitted = " and ".join(f"{one.get('method')} ({str(one.get('manifest_sha256'))[:_SHOWN]})" for one in recorded)
    there = " and ".join(
        f"{adapter.info.method} ({called.get(id(adapter), manifest_digest(adapter)[:_SHOWN])})" for adapter in present
    )
    was = f"corrected by {fitted}" if fitted else "without a corrector"
    runs = f"beside {there}" if there else "without a corrector"
    given = "".join(f" --with {called.get(id(adapter), 'ADAPTER')}" for adapter in present)
    command = f"safetykit fit {detector.info.method} {model} --data {data}{given} -o DETECTOR"
    back = f"Put {fitted} before it with --adapter, or fit" if recorded and not present else "Fit"
    raise UsageError(
        f"The detector ({detector.info.method}) was fitted on the model {was}, and is to run {runs}: it would judge "
        "states that it has never seen, and may refuse harmless requests or let harmful ones pass.",
        f"{back} the right one: {command}." + _CHOICE * (allow is not None),
    )


def _recorded(detector: Adapter) -> list[dict[str, JsonValue]]:
    found = detector.info.hyperparameters.get(CORRECTED_BY) or []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
