"""A hint at what somebody may have meant: for slips of the finger, and for nothing else."""

import pytest

from safetykit.adapters.near import did_you_mean, nearest

COMMANDS = ["demo", "inspect", "diagnose", "fit", "eval", "export", "verify", "run", "card", "lora", "index", "doctor"]
METHODS = ["vlm-guard", "care", "sasa", "one-pass", "tga", "retrieval"]


@pytest.mark.parametrize(
    ("wrong", "known", "meant"),
    [
        ("exprt", COMMANDS, "export"),
        ("VERIFY", COMMANDS, "verify"),
        ("vlmguard", METHODS, "vlm-guard"),
        ("papr", ["paper", "calibrated"], "paper"),
        ("tset", ["fit", "calibration", "test"], "test"),
        ("visual", ["all", "vision", "text", "last"], "vision"),
        ("reference:mid", ["reference:mild", "reference:severe"], "reference:mild"),
    ],
)
def test_a_slip_is_recognised(wrong, known, meant):
    assert nearest(wrong, known) == meant
    assert did_you_mean(wrong, known) == f"Did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("word", "known"),
    [
        *((word, COMMANDS) for word in ("train", "serve", "list", "predict", "explain", "check", "data", "init")),
        *((word, METHODS) for word in ("probe", "steer", "lora", "magic")),
        ("fp8", ["fp32", "fp16", "int4"]),
        ("best", ["orthogonal", "steer", "supervised", "target"]),
        ("", COMMANDS),
    ],
)
def test_another_word_is_not_taken_for_one(word, known):
    assert did_you_mean(word, known) == ""
