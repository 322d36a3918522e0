"""Pixels: what a processor makes of a picture is known to the pixel, or the processor is refused by name."""

import numpy as np
import pytest
from PIL import Image

from safetykit.adapters.errors import UsageError
from safetykit.bench.zoo import build
from safetykit.toolkit.attacks.pixels import PIXELS, PixelMaps
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.requests import Request

SIZES = {"llava": (16, 16), "llava_next": (16, 16), "internvl": (16, 16), "qwen2_vl": (32, 40)}


def picture(seed, height=70, width=90):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    def of(name):
        return InputProcessor.from_pretrained(build(name, tmp_path_factory.mktemp("zoo") / name))

    return of


@pytest.mark.parametrize("name", SIZES)
def test_the_processor_makes_of_the_file_what_was_optimised(processor, name, tmp_path):
    inputs = processor(name)
    clean, pixels = PixelMaps(inputs).start(picture(1))
    assert pixels.size == SIZES[name] == clean.shape[:2]
    changed = np.random.default_rng(2).integers(0, 256, clean.shape, dtype=np.uint8)
    for number, one in enumerate((clean, changed)):
        Image.fromarray(one).save(path := tmp_path / f"{number}.png")
        made = inputs.prepare([Request("what is this ?", path)]).pictures[PIXELS]
        assert made.shape == pixels.source.shape and np.abs(made - pixels.values(one)).max() < 1e-5
        assert np.array_equal(pixels.seen(made), one)


def test_what_the_model_sees_of_a_picture_is_where_an_attack_begins(processor):
    inputs = processor("llava")
    clean, pixels = PixelMaps(inputs).start(picture(1))
    assert np.abs(inputs.prepare([Request("?", picture(1))]).pictures[PIXELS] - pixels.values(clean)).max() < 1e-5


def test_a_processor_that_mixes_pixels_is_refused_by_name(processor):
    with pytest.raises(UsageError, match="smolvlm, SmolVLMImageProcessor.*mixes pixels") as refused:
        PixelMaps(processor("smolvlm")).require()
    assert "LLaVA-1.5" in refused.value.next_step
