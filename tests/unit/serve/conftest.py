"""A small export with a corrector and a detector that refuses some requests, and servers of it."""

import base64
import io

import pytest
from shared import once
from tiny_llava import (  # noqa: F401
    canary_export,
    make_adapter,
    make_probe,
    picture,
    requests,
    split_risks,
    vlm,
)

from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.export.surgery.adapt import adapt, copy_base


@pytest.fixture(scope="session")
def served(vlm, base_folder, make_adapter, make_probe, split_risks, requests, tmp_path_factory):  # noqa: F811
    """An export folder that swaps, without its documents; its detector refuses some of ``requests``."""

    def make(folder):
        folder.mkdir()
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        probe, refused = split_risks(make_probe(), requests)
        assert 0 < sum(refused) < len(refused)
        corrector = make_adapter(("SupervisedSteering", "decoder.layers.2", "all", "both"))
        write_manifest(adapt(folder, base, [corrector, probe], mode="hot-swap"), folder)

    return once(tmp_path_factory, "served", make)


@pytest.fixture(scope="session")
def as_messages():
    """A request as OpenAI's messages, its picture as a data URL."""

    def make(request):
        parts = [{"type": "text", "text": request.prompt}]
        for one in request.pictures:
            file = io.BytesIO()
            one.save(file, "PNG")
            url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return [{"role": "user", "content": parts}]

    return make
