"""Every op there is; importing this module registers them."""

from . import care_ops as care_ops
from . import guard_ops as guard_ops
from . import projection as projection
from . import retrieval as retrieval
from . import sasa as sasa
