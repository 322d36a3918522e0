"""Every method there is; importing this module registers their ops."""

from . import sasa as sasa
from . import vlm_guard as vlm_guard
