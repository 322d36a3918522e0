"""``budget.json``: what an adapter promises about new groups of harmless requests.

Written by :mod:`safetykit.adapters.statistics.budget`, which says what each figure is.
"""

from __future__ import annotations

from ....adapters.artifact.manifest import Strict
from ....adapters.budget import Unit
from ....adapters.section import Section


class KeptBudget(Strict):
    """One budget at the choice that was made."""

    what: str
    budget: float
    observed: float
    bound: float


class BudgetReport(Strict):
    """The attachment."""

    kept: tuple[KeptBudget, ...]
    unit: Unit
    groups: int
    records: int
    left_out: int
    confidence: float
    tested: int
    chosen: str

    @property
    def units(self) -> str:
        """The unit in plural."""
        return {"group": "groups", "category": "categories", "record": "records"}[self.unit]


BUDGET = Section("budget", BudgetReport)
