"""Who judges answers, written once for Python, the command line and ``--config``. No torch is imported here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from ....adapters.errors import UsageError
from ....adapters.settings import setting, spell
from ...data.options import RECORDS, ReadOptions
from ...model.options import AUTO, PlaceOptions
from ..options import Options
from .names import EXPECTED

if TYPE_CHECKING:
    from ..judge import Outcome
    from .judge import Judge

_PLACED = ("judge_device", "judge_dtype")


def _as(name: str) -> BeforeValidator:
    """Checked as the option of models that is called ``name``, and refused under its own name."""

    def check(given: Any) -> Any:
        try:
            return getattr(PlaceOptions(**{name: given}), name)
        except UsageError as error:
            own = error.message.replace(spell(PlaceOptions, name), spell(JudgeOptions, f"judge_{name}"))
            raise UsageError(own, error.next_step) from None

    return BeforeValidator(check)


class JudgedBy(Options):
    """Which judges, and where they run."""

    judges: tuple[str, ...] = setting(
        (),
        "Who judges, repeatable; the first fills the table: expected, phrases, exact, learned, regex:PATTERN, "
        "KIND:FOLDER of a guard or classifier, or the address of a served model.",
        option="judge",
        shown=EXPECTED,
    )
    judge_device: Annotated[str, _as("device")] = setting(AUTO, "Where judges that are models run, as --device.")
    judge_dtype: Annotated[str, _as("dtype")] = setting(AUTO, "Type of their floats, as --dtype.")

    def opened(self, waiting: Callable[[str], None] | None = None) -> list[Judge]:
        """The judges; the usual one where none is named.

        Raises:
            UsageError: there is no such judge, or where it runs is said and it is no model.
            ServerFailed: one is a server that does not answer.
        """
        from .judge import Place, opened_all

        judges = opened_all(self.judges or (EXPECTED,), Place(self.judge_device, self.judge_dtype), waiting)
        self.require_use(_PLACED, any(one.placed for one in judges), "a judge that is a model")
        return judges


class JudgeOptions(JudgedBy):
    """And what people said."""

    labels: Path | None = setting(
        None, "JSON lines of id and outcome, as people judged: agreement with them is shown.", shown="none"
    )

    @property
    def judged(self) -> bool:
        """Whether judges are to be asked beside the usual counting."""
        return bool(self.judges) or self.labels is not None

    def people(self, answered: Collection[str]) -> dict[str, Outcome]:
        """What people said; empty where that is not given.

        Args:
            answered: ids of the records of which there are answers, or will be.

        Raises:
            UsageError, InvalidArtifact: as :func:`.judging.read_labels`, or no label is of one of them.
        """
        from .judging import read_labels

        found = {} if self.labels is None else read_labels(self.labels)
        if found and not found.keys() & set(answered):
            raise UsageError(
                "None of the labels belongs to a record that is answered.", "Give them by the records' ids."
            )
        return found


class AgainOptions(JudgeOptions, ReadOptions):
    """And of which records the answers are that are judged again."""

    data: str = setting(..., RECORDS)
    overwrite: bool = setting(False, "Replace the file of --out if it exists.")
