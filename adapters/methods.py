"""Every method there is; importing this module registers their ops."""

from . import vlm_guard as vlm_guard
