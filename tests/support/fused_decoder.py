"""A decoder as ONNX Runtime GenAI's builder writes them: fused attention, skip-norms, and on request int4 weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

WIDTH, HEADS, KV_HEADS, LAYERS, VOCABULARY = 64, 4, 2, 3, 40
HEAD = WIDTH // HEADS
MICROSOFT = "com.microsoft"


class _Writer:
    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def weight(self, name: str, array: np.ndarray) -> ir.Value:
        value = ir.val(name, const_value=ir.tensor(array, name=name))
        self.initializers.append(value)
        return value

    def add(self, op: str, inputs, domain: str = "", num_outputs: int = 1, **attributes) -> ir.Node:
        node = ir.node(op, inputs, attributes, domain=domain, num_outputs=num_outputs, name=f"n{len(self.nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"n{len(self.nodes)}.{index}"
            value.dtype = ir.DataType.FLOAT
            value.shape = ir.Shape(["batch", "sequence", WIDTH])
        self.nodes.append(node)
        return node

    def matmul(self, x: ir.Value, name: str, rows: int, columns: int) -> ir.Value:
        matrix = (self.random.standard_normal((rows, columns)) * rows**-0.5).astype(np.float32)
        value = self.add("MatMul", [x, self.weight(name, matrix)]).outputs[0]
        value.shape = ir.Shape(["batch", "sequence", columns])
        return value

    def ones(self, name: str) -> ir.Value:
        return self.weight(name, (1 + 0.2 * self.random.standard_normal(WIDTH)).astype(np.float32))

    def skip_norm(self, stream: ir.Value, branch: ir.Value, name: str) -> tuple[ir.Value, ir.Value]:
        inputs = [stream, branch, self.ones(name)]
        node = self.add("SkipSimplifiedLayerNormalization", inputs, MICROSOFT, 4, epsilon=1e-5)
        return node.outputs[0], node.outputs[3]


def fused_decoder(*, int4: bool = False) -> ir.Model:
    """Three layers with GroupQueryAttention; MatMulNBits instead of MatMul if ``int4``."""
    writer = _Writer()
    embeds = ir.val("inputs_embeds", ir.DataType.FLOAT, ["batch", "sequence", WIDTH])
    mask = ir.val("attention_mask", ir.DataType.INT64, ["batch", "total"])
    past = [
        ir.val(f"past_key_values.{layer}.{part}", ir.DataType.FLOAT, ["batch", KV_HEADS, "past_sequence", HEAD])
        for layer in range(LAYERS)
        for part in ("key", "value")
    ]
    lengths, total = _lengths(writer, mask)
    angles = np.outer(np.arange(64), 10000.0 ** (-np.arange(HEAD // 2) / (HEAD // 2))).astype(np.float32)
    cos, sin = (writer.weight(name, make(angles)) for name, make in (("cos", np.cos), ("sin", np.sin)))
    first = [embeds, writer.ones("norm")]
    normed, stream = writer.add("SimplifiedLayerNormalization", first, axis=-1, epsilon=1e-5).outputs[0], embeds
    present = []
    for layer in range(LAYERS):
        q, k, v = (
            writer.matmul(normed, f"{layer}.{name}", WIDTH, heads * HEAD)
            for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        inputs = [q, k, v, past[2 * layer], past[2 * layer + 1], lengths, total, cos, sin]
        attention = writer.add(
            "GroupQueryAttention", inputs, MICROSOFT, 3, num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1
        )
        for value, part in zip(attention.outputs[1:], ("key", "value"), strict=True):
            value.name, value.shape = f"present.{layer}.{part}", ir.Shape(["batch", KV_HEADS, "total", HEAD])
            present.append(value)
        out = writer.matmul(attention.outputs[0], f"{layer}.o", WIDTH, WIDTH)
        normed, stream = writer.skip_norm(stream, out, f"{layer}.post")
        gate = writer.add("Sigmoid", [writer.matmul(normed, f"{layer}.gate", WIDTH, 2 * WIDTH)]).outputs[0]
        inner = writer.add("Mul", [gate, writer.matmul(normed, f"{layer}.up", WIDTH, 2 * WIDTH)]).outputs[0]
        down = writer.matmul(inner, f"{layer}.down", 2 * WIDTH, WIDTH)
        normed, stream = writer.skip_norm(stream, down, f"{layer}.next")
    logits = writer.matmul(normed, "head", WIDTH, VOCABULARY)
    logits.name = "logits"
    graph = ir.Graph(
        [embeds, mask, *past],
        [logits, *present],
        nodes=writer.nodes,
        initializers=writer.initializers,
        opset_imports={"": 20, MICROSOFT: 1},
        name="fused",
    )
    model = ir.Model(graph, ir_version=10)
    return _quantised(model) if int4 else model


def _lengths(writer: _Writer, mask: ir.Value) -> tuple[ir.Value, ir.Value]:
    """``seqlens_k`` [batch, 1] and ``total_sequence_length``, both int32, from the mask."""
    axis, one = (writer.weight(name, np.array(value)) for name, value in (("axis", [1]), ("one", 1)))
    first = len(writer.nodes)
    summed = writer.add("ReduceSum", [mask, axis]).outputs[0]
    lengths = writer.add("Cast", [writer.add("Sub", [summed, one]).outputs[0]], to=6).outputs[0]
    shape = writer.add("Shape", [mask]).outputs[0]
    total = writer.add("Cast", [writer.add("Gather", [shape, one]).outputs[0]], to=6).outputs[0]
    for node in writer.nodes[first:]:  # lengths, not hidden states
        node.outputs[0].type, node.outputs[0].shape = None, None
    return lengths, total


def _quantised(model: ir.Model) -> ir.Model:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(ir.serde.serialize_model(model), block_size=32, is_symmetric=True)
    quantizer.process()
    return ir.serde.deserialize_model(quantizer.model.model)
