"""Which numbers a seed and a strength may be, wherever one is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from .errors import UsageError
from .settings import Condition, setting

MOST_SEED: Final = 2**32 - 1  # of NumPy and scikit-learn; PyTorch takes more


def _acting(strength: float) -> float:
    if strength == 0:
        raise PydanticCustomError("strength", "changes nothing", {"advice": "Give another number."})
    return strength


Strength = Annotated[float, AfterValidator(_acting)]  # how much states are changed: any number but 0


def seed_setting(description: str, *, acts: Condition | Sequence[Condition] = ()) -> Any:
    """A field of settings that is a seed, 0 if it is not given; see :func:`.settings.setting`."""
    return setting(0, description, acts=acts, ge=0, le=MOST_SEED)


def require_seed(seed: int) -> None:
    """Refuse what no generator can begin with.

    Raises:
        UsageError: it is below 0 or above :data:`MOST_SEED`.
    """
    if not 0 <= seed <= MOST_SEED:
        raise UsageError(f"seed cannot be {seed!r}.", f"It is a whole number from 0 to {MOST_SEED}.")
