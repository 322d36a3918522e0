"""Which records a command answers, and how long an answer may be. No torch is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...adapters.errors import UsageError
from ...adapters.settings import Settings, setting, spell
from ..data.options import RECORDS, ReadOptions
from ..reference import Split

if TYPE_CHECKING:
    from ..data.records import Records


class Options(Settings):
    """Options of a command, which can tell which of them were given."""

    def given(self, name: str) -> bool:
        """Whether an option was given, and not as None, off or nothing."""
        return name in self.model_fields_set and getattr(self, name) not in (None, False, (), "")

    def require_use(self, names: tuple[str, ...], used: bool, needed: str) -> None:
        """Refuse options that were given where they cannot act.

        Args:
            names: of options.
            used: whether what they act on is there.
            needed: what that is, for the error.

        Raises:
            UsageError: naming the first of them that was given.
        """
        for name in () if used else names:
            if self.given(name):
                raise UsageError(f"{spell(type(self), name)} does nothing without {needed}.", "Leave it out.")


class PromptOptions(Options):
    """How long a prompt may be."""

    max_prompt_tokens: int | None = setting(
        None,
        "Longest prompt, in tokens, pictures included; a longer one is refused by name.",
        ge=1,
        shown="what the model takes",
    )


TRUNCATE = "Drop the oldest turns of conversations that are too long, and say so; otherwise they are refused."


class ChosenRecords(Options, ReadOptions):
    """A choice of records."""

    data: str | None = setting(None, RECORDS)
    split: Split = setting("test", "Which split of the records is answered.")
    limit: int | None = setting(None, "Answer at most this many records, spread over the groups.", ge=1, shown="all")

    def records(self) -> Records:
        """The records that are chosen; none without ``data``.

        Raises:
            UsageError: there are none of that split.
            InvalidArtifact: a line is no record.
        """
        from ..data.records import Records, load_records, subset
        from ..data.sources import data_path

        if self.data is None:
            return Records()
        found = load_records(data_path(self.data), [self.split], **self.reading())
        return found.of(subset(found, self.limit)) if self.limit else found


class RecordOptions(ChosenRecords):
    """A choice of records that are answered."""

    max_new_tokens: int = setting(32, "Longest answer, in tokens.", ge=1)
