"""What a server's policy lets a request choose; anything else is refused by the name of its field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .body import ChatBody, Extension
from .engine import OFF
from .errors import ApiError
from .options import ServeOptions


def choices(options: ServeOptions, adapters: Sequence[str]) -> dict[str, Any]:
    """JSON-able, how a request may choose to be answered."""
    return {"adapters": list(adapters), "max_strength": options.allow_strength, "shadow": options.allow_shadow}


def require_allowed(body: ChatBody, model: str, options: ServeOptions, adapters: Sequence[str]) -> None:
    """Refuse a request that asks for another model, for too much, or for what it may not choose.

    Args:
        model: what clients call the one that is served.
        adapters: names of what there is to choose from.

    Raises:
        ApiError: naming the field.
    """
    if body.model != model:
        message = f"The model {body.model[:100]!r} does not exist; this server has {model!r}."
        raise ApiError(404, message, param="model", code="model_not_found")
    wanted = max(body.max_tokens or 0, body.max_completion_tokens or 0)
    if wanted > options.max_new_tokens:
        name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise ApiError(400, f"{name} is at most {options.max_new_tokens}.", param=name, code="invalid_value")
    if body.n > (most := min(options.max_batch, options.max_queue)):
        raise ApiError(400, f"n is at most {most}.", param="n", code="invalid_value")
    chosen = body.safetykit
    if chosen.adapter not in adapters:
        message = f"The policy of this server allows no adapter of that name; it has {', '.join(adapters)}."
        raise ApiError(403, message, param="safetykit.adapter", code="not_allowed")
    if chosen.shadow and not options.allow_shadow:
        message = "The policy of this server does not allow shadow mode."
        raise ApiError(403, message, param="safetykit.shadow", code="not_allowed")
    if chosen.strength is not None:
        _require_strength(chosen, chosen.strength, options.allow_strength)


def _require_strength(chosen: Extension, strength: float, most: float | None) -> None:
    param = "safetykit.strength"
    if most is None:
        message = "The policy of this server allows no other strength than the fitted one."
        raise ApiError(403, message, param=param, code="not_allowed")
    if strength > most:
        raise ApiError(400, f"{param} is at most {most:g}.", param=param, code="invalid_value")
    if chosen.adapter == OFF:
        message = f"The model without adapters has no strength. Leave out {param}, or the adapter {OFF!r}."
        raise ApiError(400, message, param=param, code="invalid_value")
