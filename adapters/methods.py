"""Every op there is; importing this module registers them."""

from .ops import projection as projection
from .retrieval import retrieval as retrieval
from .sasa import sasa as sasa
