"""Forking decoders that other tools built: fused attention, skip-norms, int4 weights."""

import fused_decoder as fused
import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.ops.branch import Branch
from safetykit.export.runtime.sessions import open_session
from safetykit.export.surgery.bake import Placed, bake
from safetykit.export.surgery.blocks import cache_readers
from safetykit.export.surgery.fork import fork
from safetykit.export.surgery.residual import find_residual_stream

TOKENS, BATCH = 7, 2


def branch(safety: int, fused_layer: int) -> Branch:
    weight = torch.randn(fused.WIDTH, generator=torch.Generator().manual_seed(0))
    tensors = {"weight": weight, "bias": torch.tensor(0.2)}
    return Branch("FusedProjection", Site.block(safety), Site.block(fused_layer), tensors)


def session_of(model: ir.Model):
    return open_session(ir.serde.serialize_model(model).SerializeToString())


def prompt(buffer: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """A prompt, with cache inputs of length ``buffer`` (0: as a runtime without shared buffers feeds them)."""
    embeds = np.random.default_rng(1).standard_normal((BATCH, TOKENS, fused.WIDTH)).astype(np.float32)
    shape = (BATCH, fused.KV_HEADS, buffer, fused.HEAD)
    names = [f"past_key_values.{layer}.{part}" for layer in range(fused.LAYERS) for part in ("key", "value")]
    past = {name: np.zeros(shape, np.float32) for name in names}
    return {"inputs_embeds": embeds * scale, "attention_mask": np.ones((BATCH, TOKENS), np.int64), **past}


def risk_by_two_passes(model: ir.Model, made: Branch, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """The base graph run twice: once for both states, once with block s's addition giving the projected state."""
    graph, stream = model.graph, find_residual_stream(model)
    step = stream.steps[2 * made.safety.layer + 1]
    residual, early = step.operand(step.residual), step.node.outputs[3]
    late = stream.steps[2 * made.fused.layer + 1].node.outputs[3]
    for value in (residual, early, late):
        if not value.is_graph_output():
            graph.outputs.append(value)
    names = [value.name for value in (residual, early, late)]
    before, safety, later = session_of(model).run(names, feeds)
    start = made.make_op().start(torch.from_numpy(safety), torch.from_numpy(later)).numpy()
    given = ir.val("given", ir.DataType.FLOAT, ["batch", "sequence", fused.WIDTH])
    graph.inputs.append(given)
    step.node.replace_input_with(step.branch, given)
    graph.outputs.append(stream.final_norm)
    (normed,) = session_of(model).run([stream.final_norm.name], {**feeds, "given": start - before})
    return normed[:, -1] @ made.tensors["weight"].numpy() + made.tensors["bias"].numpy()


@pytest.mark.parametrize("int4", [False, True], ids=["fp32", "int4"])
@pytest.mark.parametrize(("safety", "fused_layer"), [(0, 0), (0, 1), (1, 1), (0, 2)])
def test_the_branch_of_a_fused_graph_is_its_own_second_pass(int4, safety, fused_layer):
    made = branch(safety, fused_layer)
    model, plain = fused.fused_decoder(int4=int4), fused.fused_decoder(int4=int4)
    assert {"GroupQueryAttention", "SkipSimplifiedLayerNormalization", "MatMulNBits" if int4 else "MatMul"} <= {
        node.op_type for node in model.graph
    }
    forked = session_of(fork(model, find_residual_stream(model), made))
    names = [value.name for value in plain.graph.outputs]
    ours, base = forked.run([*names, "risk_score"], prompt()), session_of(plain).run(names, prompt())
    assert all(np.array_equal(one, other) for one, other in zip(ours, base, strict=False))
    wanted = risk_by_two_passes(plain, made, prompt())
    assert np.isfinite(wanted).all() and np.ptp(wanted) > 1e-2
    assert np.abs(ours[-1] - wanted).max() <= 1e-5 * max(1, np.abs(wanted).max())
    assert sum(inside for _, inside in cache_readers(model.graph)) == fused.LAYERS - 1 - safety


def test_a_shared_cache_buffer_is_a_prefill_too():
    """Such runtimes hand over a buffer for the whole answer, whose length says nothing."""
    model = fused.fused_decoder()
    forked = session_of(fork(model, find_residual_stream(model), branch(0, 1)))
    (empty,), (buffered,) = (forked.run(["risk_score"], prompt(buffer)) for buffer in (0, 24))
    assert np.isfinite(empty).all() and np.abs(empty - buffered).max() <= 1e-5
    feeds = prompt(24)
    feeds["inputs_embeds"] = feeds["inputs_embeds"][:, :1]
    (later,) = forked.run(["risk_score"], {**feeds, "attention_mask": np.ones((BATCH, TOKENS + 1), np.int64)})
    assert np.isnan(later).all()


def test_a_corrector_in_a_fused_graph_acts_in_the_branch():
    """One that replaces everything a block computes makes the risk the same for all rows."""
    tensors = {
        "basis": torch.eye(fused.WIDTH),
        "mean": torch.ones(fused.WIDTH),
        "beta": torch.tensor(1.0),
    }
    item = Intervention("SubspaceProjection", Site.block(2), "all", "both", tensors)
    model, plain = fused.fused_decoder(), fused.fused_decoder()
    stream = find_residual_stream(model)
    placed = [Placed(0, item)]
    bake(model, "decoder", placed)
    fork(model, stream, branch(0, 1), placed)
    (risk,) = session_of(model).run(["risk_score"], prompt())
    (free,) = session_of(fork(plain, find_residual_stream(plain), branch(0, 1))).run(["risk_score"], prompt())
    assert np.ptp(risk) < 1e-4 < np.ptp(free)
