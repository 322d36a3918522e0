"""Opening a judge from what people type, its SPEC.

Everything that can be refused is refused here, before any answer is made: a pattern that is none, a folder that is not
there or of another kind, a server that does not answer. Weights are loaded when the first answers are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ....adapters.errors import UsageError
from ....adapters.near import did_you_mean
from ...data.sources import is_address
from .classifier import Classifier
from .folder import Place
from .guards import GUARDS
from .learned import Learned
from .names import EXPECTED
from .rubrics import RUBRICS
from .rules import Exact, Expected, Pattern, Phrases
from .running import Guard
from .served import Served
from .verdict import Item, Judge, Verdict

__all__ = ["KINDS", "Item", "Judge", "Place", "Verdict", "opened", "opened_all"]

_PLAIN: dict[str, Callable[[], Judge]] = {
    EXPECTED: Expected,
    "phrases": Phrases,
    "exact": Exact,
    "learned": Learned,
}
_WITH = ("regex", "classifier", *GUARDS)
_ADDRESS = "http://HOST/v1#MODEL"
KINDS = (
    *_PLAIN,
    *(f"{kind}:{'PATTERN' if kind == 'regex' else 'FOLDER'}" for kind in _WITH),
    _ADDRESS,
    *(f"{kind}:{_ADDRESS}" for kind in RUBRICS),
)


def opened(spec: str, place: Place | None = None, waiting: Callable[[str], None] | None = None) -> Judge:
    """The judge that a SPEC names.

    Args:
        spec: one of :data:`KINDS`.
        place: where a judge that is a model runs.
        waiting: told why a server that judges is asked again, and an empty text once it answers.

    Raises:
        UsageError: there is no such judge, or it cannot be one.
        MissingExtra: it needs a package that is not installed.
        ServerFailed: it is a server that does not answer.
    """
    if is_address(spec):
        return Served(spec, waiting)
    if spec in _PLAIN:
        return _PLAIN[spec]()
    kind, colon, rest = spec.partition(":")
    if kind in RUBRICS and is_address(rest):
        return Served(rest, waiting, rubric=RUBRICS[kind], name=spec)
    if kind in RUBRICS and kind not in GUARDS:
        raise UsageError(f"The judge {spec!r} names no address.", f"Write {kind}:{_ADDRESS}.")
    if kind in _WITH and not rest:
        what = "pattern" if kind == "regex" else "folder"
        raise UsageError(f"The judge {spec!r} names no {what}.", f"Write {kind}:{what.upper()}.")
    if kind == "regex":
        return Pattern(rest)
    if kind == "classifier":
        return Classifier(rest, place or Place())
    if kind in GUARDS:
        return Guard(GUARDS[kind], rest, place or Place())
    if kind in _PLAIN and colon:
        raise UsageError(f"The judge {kind} takes nothing after it, but {rest!r} stands there.", f"Write {kind}.")
    hint = did_you_mean(kind, [*_PLAIN, *_WITH, *RUBRICS])
    raise UsageError(f"There is no judge {spec!r}.", f"{hint} It is one of {', '.join(KINDS)}.".strip())


def opened_all(
    specs: Sequence[str], place: Place | None = None, waiting: Callable[[str], None] | None = None
) -> list[Judge]:
    """The judges of several SPECs, in their order.

    Raises:
        UsageError: one is named twice; or as :func:`opened`.
    """
    if (twice := next((one for at, one in enumerate(specs) if one in specs[:at]), None)) is not None:
        raise UsageError(f"The judge {twice} is named twice.", "Name it once.")
    return [opened(one, place, waiting) for one in specs]
