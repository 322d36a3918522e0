"""How records are read, written once for Python, the command line and ``--config``. No torch is imported here."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from ...adapters.errors import UsageError
from ...adapters.settings import Settings, setting, spell

AUTO: Final = "auto"
RECORDS: Final = "Records: JSONL or Parquet file, folder of them or of `datasets`, or `reference`."
_MOST = 4  # threads that auto takes; decoding keeps up with most models on fewer


def _workers(given: Any) -> str:
    text = str(given)
    if text != AUTO and not re.fullmatch(r"\d{1,3}", text):
        raise UsageError(f"{spell(ReadOptions, 'workers')} cannot be {text!r}.", "It is auto or a number of threads.")
    return text


class ReadOptions(Settings):
    """How records are read."""

    skip_bad_rows: bool = setting(
        False, "Leave out rows that are no records or whose picture cannot be decoded, and say how many."
    )
    workers: Annotated[str, BeforeValidator(_workers)] = setting(
        AUTO, "Threads that decode pictures while the model runs, or auto: by the processors there are."
    )

    def reading(self) -> dict[str, Any]:
        """The keywords of :func:`.records.load_records`."""
        return {name: getattr(self, name) for name in ReadOptions.model_fields}


def workers_of(asked: int | str) -> int:
    """A number of threads; of one processor that the model needs itself, ``auto`` takes none.

    Raises:
        UsageError: this is no number.
    """
    text = _workers(asked)
    return min(_MOST, (os.cpu_count() or 1) - 1) if text == AUTO else int(text)
