"""Which kinds of models are run, as far as a configuration tells. Does not use torch."""

from __future__ import annotations

from typing import Any

from ...adapters.errors import UsageError

WANTED = "safetykit works on vision-language models whose decoder reads prompts, with or without pictures, and answers."
_ALWAYS_SEEING = ("kosmos-2", "kosmos-2.5", "got_ocr2", "pp_chart2table", "idefics")  # as their code says when it runs


def require_decoder(config: Any) -> None:
    """Refuse configurations of models that do not write their answer by one decoder that reads the prompt.

    Raises:
        UsageError: with the reason.
    """
    kind = getattr(config, "model_type", type(config).__name__)
    if reason := _other_kind(config, kind):
        raise UsageError(f"The model ({kind}) {reason}.", WANTED)


def _other_kind(config: Any, kind: str) -> str | None:
    if getattr(config, "is_encoder_decoder", False) or getattr(text_config(config), "is_encoder_decoder", False):
        return "is an encoder with a decoder: the prompt does not pass through the decoder's blocks"
    if kind in _ALWAYS_SEEING:
        return "reads no prompt without a picture"
    if "diffusion" in kind:
        return "writes its answer by diffusion, not token after token"
    return None


def text_config(config: Any) -> Any:
    """The part of a configuration that is about the decoder."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
