"""Every op there is; importing this module registers them."""

from .care import ops as care_ops  # noqa: F401
from .ops import projection  # noqa: F401
from .retrieval import retrieval  # noqa: F401
from .sasa import sasa  # noqa: F401
from .vlm_guard import ops as guard_ops  # noqa: F401
