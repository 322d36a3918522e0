"""What the parts of a decoder's cache are called; imports nothing, for graphs are named by it too."""

from __future__ import annotations

STATES = ("conv_state", "recurrent_state")  # of a layer that keeps a state instead of keys and values
