"""Functions that scan: experts that see the rows routed to them, states that go through tokens one after the other."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextExperts

from safetykit.export.base import recurrent
from safetykit.export.base.experts import add_experts
from safetykit.export.base.recurrent import add_rules
from safetykit.export.base.tracing import OPSET
from safetykit.export.runtime.sessions import open_session
from safetykit.toolkit.model.experts import DOMAIN, NODE, experts_as_nodes, weights_of

WIDTH, INNER, EXPERTS, CHOSEN = 8, 6, 5, 2


class Layer(nn.Module):
    """A layer that has experts."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        config = SimpleNamespace(
            hidden_size=WIDTH,
            moe_intermediate_size=INNER,
            intermediate_size=INNER,
            num_experts=EXPERTS,
            num_local_experts=EXPERTS,
            moe_num_experts=EXPERTS,
            hidden_act="silu",
            _experts_implementation="eager",
        )
        self.experts = kind(config)
        for weight in self.experts.parameters():
            nn.init.normal_(weight, generator=torch.Generator().manual_seed(weight.shape[1]))


def session(model: ir.Model):
    return open_session(ir.serde.serialize_model(model).SerializeToString())


def graph(domain: str, op_type: str, values: list[ir.Value], outputs: int, attributes: dict) -> ir.Model:
    node = ir.node(op_type, values, domain=domain, attributes=attributes, num_outputs=outputs)
    for at, value in enumerate(node.outputs):
        value.name, value.dtype = f"out.{at}", values[0].dtype
    made = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": OPSET, domain: 1}, name="one")
    return ir.Model(made, ir_version=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", [Qwen3VLMoeTextExperts, AriaExperts])
def test_experts_compute_what_those_of_transformers_do_whoever_is_chosen(kind, dtype):
    layer = Layer(kind)
    known = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}[dtype]
    names = ("states", "index", "shares", *weights_of(layer.experts))
    values = [ir.val(name, ir.DataType.INT64 if name == "index" else known) for name in names]
    model = graph(DOMAIN, NODE, values, 1, {"layer": "experts"})
    add_experts(model, layer, OPSET)
    ran, random = session(model), torch.Generator().manual_seed(0)
    weights = {name: weight.detach().to(dtype).numpy() for name, weight in weights_of(layer.experts).items()}
    chosen = [torch.stack([torch.randperm(EXPERTS, generator=random)[:CHOSEN] for _ in range(7)])]
    chosen += [torch.tensor([[3, 1]]), torch.tensor([[0, 4]] * 3)]  # one token; experts that nobody chose
    for index in chosen:
        states, shares = (torch.randn(len(index), width, generator=random) for width in (WIDTH, CHOSEN))
        expected = layer.experts(states, index, shares).detach().numpy()
        feeds = {"states": states.to(dtype).numpy(), "index": index.numpy(), "shares": shares.to(dtype).numpy()}
        (found,) = ran.run(None, feeds | weights)
        limit = 1e-6 if dtype == torch.float32 else 5e-3
        assert found.dtype == feeds["states"].dtype and np.abs(found - expected).max() < limit * np.abs(expected).max()


def test_a_layer_computes_its_experts_itself_again_after_tracing():
    layer, states = Layer(Qwen3VLMoeTextExperts), torch.ones(2, WIDTH)
    given = (states, torch.tensor([[0, 1], [2, 3]]), torch.ones(2, CHOSEN))
    before = layer.experts(*given)
    with experts_as_nodes(layer):
        assert layer.experts.config._experts_implementation == "safetykit_experts"
    assert torch.equal(layer.experts(*given), before) and not hasattr(layer.experts, "_called")


@pytest.mark.parametrize("tokens", [1, 3, 70])
def test_the_gated_delta_rule_is_that_of_transformers(tokens, monkeypatch):
    """Chunks and steps there, a scan here, from a state that is not empty."""
    fed = {}

    def ask(_, inputs, **__):
        fed.update(zip(names, (one.numpy() for one in inputs), strict=True))
        found = ran.run(None, fed)
        return [torch.from_numpy(found[1]), torch.from_numpy(found[0])][::-1]

    names = ("state", "query", "key", "value", "g", "beta")
    model = graph(recurrent.DOMAIN, recurrent.NODE, [ir.val(name, ir.DataType.FLOAT) for name in names], 2, {})
    add_rules(model, OPSET)
    ran, random = session(model), torch.Generator().manual_seed(0)
    monkeypatch.setattr(torch.onnx.ops, "symbolic_multi_out", ask)
    query, key = (torch.randn(2, tokens, 2, 4, generator=random) for _ in range(2))
    value, state = torch.randn(2, tokens, 4, 5, generator=random), torch.randn(2, 4, 4, 5, generator=random)
    g, beta = -torch.rand(2, tokens, 4, generator=random), torch.rand(2, tokens, 4, generator=random)
    given = {"initial_state": state, "use_qk_l2norm_in_kernel": True, "output_final_state": True}
    expected = modeling_qwen3_5.torch_chunk_gated_delta_rule(query, key, value, g=g, beta=beta, **given)
    found = recurrent._rule(query, key, value, g=g, beta=beta, **given)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5
