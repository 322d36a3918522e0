"""Judges: what is said of an answer, each by another rule or model. See :mod:`.judge` for how they are opened."""
