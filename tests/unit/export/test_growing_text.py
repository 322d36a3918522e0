"""Text that grows: what was handed out is never taken back, and joined it is the whole."""

import random

import pytest

from safetykit.export.runtime.growing_text import GrowingText

SAID = "naïve 🪁 kites, STOP signs and S T O P"


def bytes_of(ids):
    return bytes(ids).decode("utf-8", "replace").strip()


def grown(stop=(), said=SAID):
    text, pieces = GrowingText(bytes_of, stop), []
    for byte in said.encode():
        text.add(byte)
        if text.stopped:
            break
        pieces.append(text.piece())
    pieces.append(text.piece(last=True))
    return text, pieces


def test_letters_come_whole():
    text, pieces = grown()
    assert "".join(pieces) == SAID == text.whole and not text.stopped
    assert "🪁" in pieces and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("stop", [("STOP",), ("never", "STOP si", "signs"), ("P signs", "STOP")])
def test_nothing_of_a_stop_text_is_handed_out(stop):
    text, pieces = grown(stop)
    assert text.stopped and "".join(pieces) == text.whole
    assert not any(one in text.whole for one in stop) and SAID.startswith(text.whole)


def test_what_only_begins_like_a_stop_text_comes_later():
    text, pieces = grown(("S T O P!",))
    assert not text.stopped and "".join(pieces) == SAID


def test_any_text_and_any_stop():
    draw = random.Random(1)
    for _ in range(300):
        said = "".join(draw.choice("ab ") for _ in range(20))
        stop = ["".join(draw.choice("ab") for _ in range(draw.randint(1, 4))) for _ in range(draw.randint(0, 3))]
        text, pieces = grown(stop, said)
        assert "".join(pieces) == text.whole
        assert not any(one in text.whole for one in stop)
