"""A strength that a request chooses, where the server allows it, is that of adapters that were fitted so."""

import dataclasses
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving import CHAT, SCALING, TOKENS, body, is_refused, serving
from workshop import safetykit

from safetykit import OnnxVLM
from safetykit.adapters.errors import UsageError
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.hotswap import read_swap
from safetykit.export.runtime.strength import scaled, strengths
from safetykit.serve.drift import Reference
from safetykit.serve.logs import Log

FACTORS = (0.0, 0.4, 1.0, 2.0)


def times(adapter, factor):
    """The adapter, fitted with another strength."""
    changed = [
        dataclasses.replace(one, tensors={**one.tensors, name: one.tensors[name] * factor})
        for one, name in zip(adapter.interventions, ("alpha", "beta"), strict=True)
    ]
    return dataclasses.replace(adapter, interventions=tuple(changed))


@pytest.fixture(scope="module")
def other(make_adapter, probe):
    """What else requests may choose."""
    return make_adapter(*SCALING, seed=5), probe


def answers(model, requests):
    return [model.generate(one, TOKENS) for one in requests]


def test_answers_are_those_of_adapters_that_were_fitted_so(scalable, other, make_adapter, probe, as_messages, requests):
    model = OnnxVLM.from_pretrained(scalable)
    expected = {("on", 1.0): answers(model, requests)}
    own, allowed = make_adapter(*SCALING), {"allow_uncorrected_detector": True}
    for name, adapter in (("on", own), ("other", other[0])):
        for factor in FACTORS:
            model.install(read_swap([times(adapter, factor), probe], model.manifest, **allowed))
            found = answers(model, requests)
            assert expected.setdefault((name, factor), found) == found
    model.reset()
    texts = [tuple(one.text for one in found) for found in expected.values()]
    assert len(set(texts)) == 7, "all differ, but that at 0 both adapters do nothing"
    swaps = {"other": read_swap(other, model.manifest, **allowed)}
    with serving(scalable, swaps=swaps, model=model, allow_strength=2.0) as client, ThreadPoolExecutor(8) as pool:
        chosen = [{"adapter": name, "strength": factor} for name, factor in expected] + [{}]
        bodies = [body(as_messages(one), safetykit=each) for one in requests for each in chosen]
        found = list(pool.map(lambda sent: client.post(CHAT, json=sent).json(), bodies))
    for sent, value in zip(bodies, found, strict=True):
        each = sent["safetykit"]
        at = [as_messages(one) for one in requests].index(sent["messages"])
        answer = expected[each.get("adapter", "on"), each.get("strength", 1.0)][at]
        assert value["choices"][0]["message"]["content"] == answer.text
        told = value["safetykit"]
        assert told["refused"] == answer.refused and {"adapter": "on", **each}.items() <= told.items()
        assert ("strength" in told) == bool(each)


def test_at_0_the_model_is_unmodified_and_only_the_detector_acts(scalable, base_folder, as_messages, requests):
    plain, log = answers(OnnxVLM.from_pretrained(base_folder), requests), io.StringIO()
    with serving(scalable, allow_strength=1.0, allow_shadow=True, log=Log(log)) as client:
        assert client.get("/v1/models").json()["data"][0]["safetykit"]["max_strength"] == 1.0
        for one, answer in zip(requests, plain, strict=True):
            off = {"strength": 0, "shadow": True}
            value = client.post(CHAT, json=body(as_messages(one), safetykit=off)).json()
            assert value["choices"][0]["message"]["content"] == answer.text
    for line in log.getvalue().splitlines():
        assert {"adapter": "on", "strength": 0}.items() <= json.loads(line).items()


@pytest.mark.parametrize("strength", [-0.1, 2.1, "1", True, [1], 1e309])
def test_a_strength_beyond_what_is_allowed_is_refused(scalable, as_messages, requests, strength):
    sent = json.dumps(body(as_messages(requests[0]), safetykit={"strength": strength}))
    with serving(scalable, allow_strength=2.0) as client:
        if strength == 1e309:  # a number of JSON that is none of ours
            sent = sent.replace("Infinity", "1e309")
        is_refused(client.post(CHAT, content=sent), 400, "safetykit.strength", "invalid_value")


def test_a_strength_is_refused_where_none_is_allowed_and_of_no_adapter(scalable, as_messages, requests):
    sent = body(as_messages(requests[0]), safetykit={"strength": 1})
    with serving(scalable) as client:
        assert client.get("/v1/models").json()["data"][0]["safetykit"]["max_strength"] is None
        is_refused(client.post(CHAT, json=sent), 403, "safetykit.strength", "not_allowed")
    sent["safetykit"]["adapter"] = "off"
    model = OnnxVLM.from_pretrained(scalable)
    with serving(scalable, model=model, plain=model, allow_strength=2.0) as client:
        is_refused(client.post(CHAT, json=sent), 400, "safetykit.strength", "invalid_value")


def test_drift_is_compared_of_the_fitted_strength_alone(scalable, as_messages, requests):
    watched = [Reference("risk", None, (0.0,), (500, 500))]
    with serving(scalable, watched=watched, allow_strength=2.0, drift_window=2) as client:
        noted = []
        client.service._drift.note = lambda scores, pictured: noted.append(scores) or []
        for strength in (0.5, 1, None):
            client.post(CHAT, json=body(as_messages(requests[0]), safetykit={"strength": strength}))
    assert len(noted) == 2


def test_a_server_says_what_it_scales_and_refuses_what_it_cannot(scalable, served, base_folder):
    typed = ("serve", scalable, "--check", "--port", 0, "--json")
    done = safetykit(*typed, "--allow-strength", 2.5, "--swap", scalable, "--allow-uncorrected-detector")
    assert done.code == 0 and done.value["max_strength"] == 2.5, done.err
    assert safetykit(*typed).value["max_strength"] is None
    for value, said in ((0, "--allow-strength"), ("inf", "strength"), (1e39, "overflows float32"), ("x", "number")):
        done = safetykit(*typed, "--allow-strength", value)
        assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
    done = safetykit("serve", served, "--check", "--port", 0, "--allow-strength", 2)
    assert done.code == 2 and "Without a strength: SupervisedSteering at decoder.layers.2." in done.err
    done = safetykit("serve", base_folder, "--check", "--port", 0, "--allow-strength", 2)
    assert done.code == 2 and "parameters are fixed" in done.err


def test_only_the_strengths_are_scaled(scalable):
    manifest = read_manifest(scalable)
    swap, names = read_swap([scalable], manifest, allow_uncorrected_detector=True), strengths(manifest)
    assert [one.source for one in manifest.parameters if one.name in names] == ["0.alpha", "1.beta"]
    half = scaled(swap, manifest, 0.5)
    assert half.detector == swap.detector and half.arrays.keys() == swap.arrays.keys()
    for name, array in swap.arrays.items():
        factor = 0.5 if name in names else 1
        assert np.array_equal(half.arrays[name], factor * array) and half.arrays[name].dtype == array.dtype
    small = dataclasses.replace(swap, arrays={name: one.astype(np.float16) for name, one in swap.arrays.items()})
    assert {one.dtype for one in scaled(small, manifest, 0.3).arrays.values()} == {np.dtype(np.float16)}
    with pytest.raises(UsageError, match="overflows float16"):
        scaled(small, manifest, 1e5)
    for factor in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="is no strength"):
            scaled(swap, manifest, factor)


def test_what_has_no_strength_is_named(scalable):
    manifest = read_manifest(scalable)
    with pytest.raises(UsageError, match="new weights \\(2\\)"):
        strengths(manifest.model_copy(update={"updates": ("a", "b")}))
    detector = [one for one in manifest.interventions if "risk" in one.extras]
    with pytest.raises(UsageError, match="No op of this export changes the model"):
        strengths(manifest.model_copy(update={"interventions": tuple(detector), "parameters": ()}))
