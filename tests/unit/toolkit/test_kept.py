"""A checkpoint that stays loaded: handed out again where it is the same, and as if just loaded."""

import pytest

from safetykit.toolkit.model.kept import Kept, keeping
from safetykit.toolkit.model.vlm import VLM


@pytest.fixture
def loads(monkeypatch):
    seen = []
    original = VLM.from_pretrained

    def counted(folder, **given):
        seen.append((str(folder), given))
        return original(folder, **given)

    monkeypatch.setattr(VLM, "from_pretrained", counted)
    return seen


def test_what_is_asked_for_again_is_not_loaded_again(loads, workshop):
    tiny = workshop["tiny"]
    with keeping() as kept:
        first = kept(tiny)
        assert kept(tiny) is first and kept(tiny, dtype="auto") is first
        assert kept(tiny, dtype=str(first.dtype).removeprefix("torch.")) is first  # it has that by itself
        assert len(loads) == 1
        assert kept(tiny, batch_size="2") is not first
        assert kept(tiny, dtype="bfloat16") is not first
        assert len(loads) == 3


def test_it_is_as_if_just_loaded(workshop):
    """What depends on what was asked before is forgotten."""
    kept = Kept()
    vlm = kept(workshop["tiny"])
    most = vlm.batch_size.most
    vlm.features._features[b"seen"] = vlm.parts.embed_tokens.weight[:1]
    vlm.batch_size.most = 1
    again = kept(workshop["tiny"])
    assert again is vlm and not again.features._features and again.batch_size.most == most
    kept.release()
    assert kept(workshop["tiny"]) is not vlm
