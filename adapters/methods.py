"""Every op there is; importing this module registers them."""

from .care import ops as care_ops
from .vlm_guard import ops as guard_ops
from .ops import projection as projection
from .retrieval import retrieval as retrieval
from .sasa import sasa as sasa
