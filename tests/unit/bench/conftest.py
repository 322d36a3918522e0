"""The scripts of bench/real import one another by bare names."""

import sys
from pathlib import Path

from tiny_llava import make_adapter, vlm  # noqa: F401

sys.path.insert(0, str(Path(__file__).parents[3] / "bench" / "real"))
