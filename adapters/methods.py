"""Every op there is; importing this module registers them."""

from .registry import load_ops

load_ops()
