"""Bound runs give what plain runs give, and the cache stays where it is; a provider that is not there is an error."""

import json

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.export.commands.doctor import examine
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.runtime.binding import Session, as_array, device_of
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import open_session, placement
from safetykit.export.surgery.adapt import adapt, copy_base

MIXED = parity_requests()["4 rows padded, mixed"]
ON_CPU = ("cpu", 0)  # binds as a device does, with the CPU for a device
ITEMS = (("TargetSteering", "decoder.layers.1", "last", "prefill"), ("SubspaceProjection", "projector", "all", "both"))
# Listed by every build of ONNX Runtime for servers, starts, and computes nothing itself.
IDLE = "AzureExecutionProvider"


@pytest.fixture
def export(vlm, base_folder, tmp_path, make_adapter):
    def run(mode: str = "bake"):
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        return adapt(tmp_path, base, [make_adapter(*ITEMS)], mode=mode)

    return run


def opened(vlm, folder, manifest, **options) -> OnnxVLM:
    return OnnxVLM(folder, manifest, vlm.inputs, ["CPUExecutionProvider"], **options)


def test_bound_runs_give_the_same_bits(vlm, export, requests, tmp_path):
    manifest = export()
    plain, bound = opened(vlm, tmp_path, manifest), opened(vlm, tmp_path, manifest, bind_to=ON_CPU)
    ours, theirs = plain.prefill_requests(MIXED), bound.prefill_requests(MIXED)
    for at in range(4):
        assert np.array_equal(ours.logits, theirs.logits)
        for name, value in ours.past.items():
            assert isinstance(theirs.past[name], onnxruntime.OrtValue)
            assert np.array_equal(value, as_array(theirs.past[name]))
        ours, theirs = plain.step(ours, np.full(4, 8 + at)), bound.step(theirs, np.full(4, 8 + at))
    answers = [[answer.token_ids for answer in model.generate(requests, 5)] for model in (plain, bound)]
    assert answers[0] == answers[1]


def test_bound_runs_are_held_against_pytorch(vlm, export, make_adapter, tmp_path):
    bound = opened(vlm, tmp_path, export(), bind_to=ON_CPU)
    with vlm.applied(make_adapter(*ITEMS)):
        gap = compare_logits(vlm, bound, MIXED, 3).logits
    assert gap.error <= 1e-5 * gap.scale


def test_the_cache_is_never_copied_back(vlm, export, tmp_path, monkeypatch):
    """Counted: what is read back of a step is small, and what is bound as the past is what came as the present."""
    bound = opened(vlm, tmp_path, export(), bind_to=ON_CPU)
    state = bound.prefill_requests(MIXED)
    read, fed = [], []
    numpy, bind_value = onnxruntime.OrtValue.numpy, onnxruntime.IOBinding.bind_ortvalue_input
    monkeypatch.setattr(onnxruntime.OrtValue, "numpy", lambda self: read.append(self.shape()) or numpy(self))
    monkeypatch.setattr(
        onnxruntime.IOBinding,
        "bind_ortvalue_input",
        lambda self, name, value: fed.append((name, value)) or bind_value(self, name, value),
    )
    before = dict(state.past)
    bound.step(state, np.full(4, 9))
    past = {name: value for name, value in fed if name.startswith("past_key_values")}
    assert past.keys() == before.keys() and all(before[name] is value for name, value in past.items())
    width, vocabulary = bound.manifest.base.d_model, state.logits.shape[-1]
    assert sorted(map(tuple, read)) == sorted([(4, 1, width), (4, 1, vocabulary), (4,)])


@pytest.mark.slow
def test_overrides_are_put_on_the_device_once(vlm, export, make_adapter, tmp_path):
    manifest = export("hot-swap")
    plain, bound = opened(vlm, tmp_path, manifest), opened(vlm, tmp_path, manifest, bind_to=ON_CPU)
    other = make_adapter(*ITEMS, seed=3, rank=5)
    for model in (plain, bound):
        model.swap(other)
    ours, theirs = (model.step(model.prefill_requests(MIXED), np.full(4, 9)).logits for model in (plain, bound))
    assert np.array_equal(ours, theirs)
    overrides = bound._decoder._overrides
    assert overrides and all(isinstance(value, onnxruntime.OrtValue) for value in overrides.values())
    bound.reset()
    assert not bound._decoder._overrides


def small_graph() -> bytes:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in ("x", "present.0")]
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [])
    default = helper.make_tensor("scale", TensorProto.FLOAT, [], [2.0])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], np.eye(4).ravel().tolist())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Mul", ["z", "scale"], ["present.0"])]
    graph = helper.make_graph(nodes, "small", [values[0], scale], values[1:], [default, weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


@pytest.mark.parametrize("device", [None, ON_CPU])
def test_sizes_of_nothing_and_scalars_are_bound_as_they_are(device):
    session = Session(open_session(small_graph()), device=device)
    assert as_array(session.run(None, {"x": np.zeros((0, 4), np.float32)})[0]).shape == (0, 4)
    session.override({"scale": np.array(3, np.float32)})
    (found,) = session.run(["present.0"], {"x": np.ones((1, 4), np.float32)})
    assert (as_array(found) == 3).all()
    (fed,) = session.run(None, {"x": np.ones((1, 4), np.float32), "scale": np.array(5, np.float32)})
    assert (as_array(fed) == 5).all()  # an optional input that is fed with one call
    session.override({})
    assert (as_array(session.run(None, {"x": np.ones((1, 4), np.float32)})[0]) == 2).all()


def test_the_cpu_is_not_bound():
    session = open_session(small_graph())
    assert device_of(session) is None and Session(session).device is None


class Fake:
    """A session as CUDA gives it."""

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_options(self):
        return {"CUDAExecutionProvider": {"device_id": "1"}}


def test_the_first_provider_decides_where_runs_are_bound():
    assert device_of(Fake()) == ("cuda", 1)


def test_a_provider_that_takes_no_node_is_refused():
    """It is listed and the session has it; only the placement of the nodes tells."""
    if IDLE not in onnxruntime.get_available_providers():
        pytest.skip("this build has no provider that starts without computing")
    with pytest.raises(UsageError, match="leaves nodes of the graph to the CPU: 1 MatMul") as caught:
        open_session(small_graph(), [IDLE])
    assert "Add --provider CPUExecutionProvider" in caught.value.next_step
    session = open_session(small_graph(), [IDLE, "CPUExecutionProvider"])
    assert session.get_providers()[0] == IDLE


def test_the_placement_names_every_node(tmp_path):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(small_graph(), options, providers=["CPUExecutionProvider"])
    assert sorted(placement(session)) == [("MatMul", "CPUExecutionProvider"), ("Mul", "CPUExecutionProvider")]


def test_a_provider_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="does not give CUDAExecutionProvider"):
        open_session(small_graph(), ["CUDAExecutionProvider"])


def test_the_doctor_tells_what_computes():
    found = examine()["providers"]
    assert found["CPUExecutionProvider"] is True
    assert found.get(IDLE, False) is False
    json.dumps(found)


def test_a_graph_that_fails_in_a_run_is_a_damaged_one():
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "reshaped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("shape", TensorProto.INT64, [2], [2, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = Session(open_session(model.SerializeToString(), ["CPUExecutionProvider"]))
    assert session.run(None, {"x": np.zeros(6, np.float32)})[0].shape == (2, 3)
    with pytest.raises(InvalidArtifact, match="cannot run the graph"):
        session.run(None, {"x": np.zeros(7, np.float32)})


def test_memory_that_a_session_lacks_is_told_as_such(monkeypatch):
    class RuntimeException(Exception):
        __module__ = "onnxruntime.capi.onnxruntime_pybind11_state"

    class Full:
        get_inputs = get_outputs = get_overridable_initializers = get_modelmeta = get_providers = lambda self: ["none"]

        def run(self, outputs, feeds):
            raise RuntimeException("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 8")

    with pytest.raises(MemoryError, match="of size 8"):
        Session(Full()).run(None, {})
