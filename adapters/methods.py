"""Every method there is; importing this module registers their ops."""

from . import care_ops as care_ops
from . import retrieval as retrieval
from . import sasa as sasa
from . import vlm_guard as vlm_guard
