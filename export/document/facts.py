"""``card.json``: what the card says that nobody can measure. No torch is imported here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

from ...adapters.artifact.manifest import Strict

# What the Hugging Face Hub accepts as a model id, or the last part of a path; and how it spells licences.
MODEL_NAME = r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$"
LICENCE = r"^[a-z0-9][a-z0-9.-]*$"
MODEL_NAME_LENGTH = 96


class CardFacts(Strict):
    """``card.json``: what nobody can measure.

    Attributes:
        base_model: id of the base on the Hub, or the last part of its path.
        base_license: its licence as the Hub spells it; None when it was not given.
    """

    schema_version: Literal[1] = 1
    base_model: Annotated[str, StringConstraints(pattern=MODEL_NAME, max_length=MODEL_NAME_LENGTH)]
    base_license: Annotated[str, StringConstraints(pattern=LICENCE)] | None = None
