"""What judges are called; imports nothing, for commands name them in their help."""

from __future__ import annotations

EXPECTED = "expected"  # the judge of decisions of which nothing else is said
PEOPLE = "people"  # in the place of a judge, for labels that people gave
