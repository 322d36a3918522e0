"""What may be said of a data set that becomes records, written once for the command line and ``--config``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator

from ...adapters.errors import UsageError
from ...adapters.settings import Settings, require_choice, setting, spell
from .importers.mapped import NAMED
from .importers.source import Option
from .record import Label, Split

_OF_A_LABEL = {"label", "harmful", "harmless"}  # fields of columns, of which a record has one


def _text(name: str) -> AfterValidator:
    def check(given: str | None) -> str | None:
        if given is not None and not given.strip():
            raise UsageError(f"{spell(ImportOptions, name)} is empty.", "Leave it out, or say something.")
        return given

    return AfterValidator(check)


def _columns(given: tuple[str, ...]) -> tuple[str, ...]:
    columns_of(given)
    return given


def columns_of(given: tuple[str, ...]) -> dict[str, str]:
    """Fields with the columns that hold them.

    Raises:
        UsageError: one is not written as a pair, no field of records, or a second one of its field.
    """
    option, found = spell(ImportOptions, "columns"), dict[str, str]()
    for text in given:
        field, _, name = text.partition("=")
        if not name:
            raise UsageError(f"{option} {text!r} names no column.", "Write FIELD=NAME, such as prompt=question.")
        require_choice(option, field, list(NAMED))
        if other := next((one for one in found if one == field or {one, field} <= _OF_A_LABEL), None):
            raise UsageError(
                f"{option} names two columns of one field: {other}={found[other]} and {text}.", "Name one of them."
            )
        found[field] = name
    return found


class ImportOptions(Settings):
    """Which records are made, and what the files do not say."""

    split: Split = setting("test", "Split of the records.")
    limit: int | None = setting(None, "At most so many, evenly over carriers, labels and categories.", ge=1)
    images: Path | None = setting(None, "Folder of its pictures, if they lie elsewhere.")
    label: Label | None = setting(None, "Label of all records, if no column says it.")
    category: Annotated[str | None, _text("category")] = setting(None, "Category of records that have none.")
    prompt: Annotated[str | None, _text("prompt")] = setting(
        None, "Request that goes with all pictures, if none is there."
    )
    columns: Annotated[tuple[str, ...], AfterValidator(_columns)] = setting(
        (),
        "FIELD=NAME: column of a field of records, or of a yes to harmful or harmless; repeatable.",
        option="column",
        shown="None",
    )
    skip_bad_rows: bool = setting(False, "Leave out rows that are not as the data set says, and count them.")

    def said(self) -> Mapping[str, Any]:
        """What was said of the data set, by the fields of :class:`~.importers.source.Source`."""
        given = {name: getattr(self, name) for name in get_args(Option) if getattr(self, name)}
        return {**given, "columns": columns_of(self.columns)} if self.columns else given
