"""Fixtures of the tiny LLaVA and its base export."""

from tiny_llava import canary_export, make_adapter, make_detector, make_probe, requests, split_risks, vlm  # noqa: F401
