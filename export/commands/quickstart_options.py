"""What may be chosen in `safetykit quickstart`. No torch is imported here."""

from __future__ import annotations

from ...adapters.settings import setting
from ...toolkit.data.options import RECORDS
from ...toolkit.evaluation.options import Options
from ...toolkit.model.options import LoadOptions


class QuickstartOptions(Options, LoadOptions):
    """How much is asked and tried."""

    data: str | None = setting(
        None, RECORDS, shown="starter records, made for it; of a reference VLM the bundled ones, as it knows no others"
    )
    method: tuple[str, ...] = setting(
        ("vlm-guard",), "Repeat for several: the one that does best on calibration records is exported.",
        shown="vlm-guard",
    )  # fmt: skip
    records: int | None = setting(None, "How many starter records are made.", ge=96, shown="2000")
    limit: int = setting(240, "Most test records that are asked, and calibration records that fits choose on.", ge=8)
    trials: int = setting(24, "Most settings of a method that are tried.", ge=2)
    max_new_tokens: int = setting(32, "Longest answer, in tokens.", ge=1)
