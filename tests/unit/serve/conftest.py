"""A small export with a corrector and a detector that refuses some requests, a server of it, and its answers."""

import base64
import io

import pytest
from serving import SCALING, TOKENS, serving
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

from safetykit import OnnxVLM
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


@pytest.fixture(scope="module")
def client(served):
    with serving(served, max_pictures=2, max_pixels=1000) as found:
        yield found


@pytest.fixture(scope="module")
def expected(served, requests):  # noqa: F811
    model = OnnxVLM.from_pretrained(served)
    answers = [model.generate(one, TOKENS) for one in requests]
    assert {one.refused for one in answers} == {True, False}
    return answers, model.detector.threshold


@pytest.fixture(scope="module")
def answered(requests, expected):  # noqa: F811
    """A request that the detector lets pass."""
    return next(one for one, answer in zip(requests, expected[0], strict=True) if not answer.refused)


@pytest.fixture(scope="module")
def refused(requests, expected):  # noqa: F811
    return next(one for one, answer in zip(requests, expected[0], strict=True) if answer.refused)


@pytest.fixture(scope="session")
def probe(make_probe, split_risks, requests):  # noqa: F811
    return split_risks(make_probe(), requests)[0]


@pytest.fixture(scope="session")
def scalable(base_folder, make_adapter, probe, tmp_path_factory):  # noqa: F811
    """An export whose correctors, before and behind its detector, have strengths."""

    def make(folder):
        folder.mkdir()
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        write_manifest(adapt(folder, base, [make_adapter(*SCALING), probe], mode="hot-swap"), folder)

    return once(tmp_path_factory, "scalable", make)
