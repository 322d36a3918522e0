"""int4: our own decoder, quantised by ONNX Runtime's quantiser before any adapter goes in.

Every matrix product with a constant weight becomes a ``MatMulNBits``: weights rounded to 4 bits in blocks of inputs,
w ≈ (code − 8) · scale with one scale per block; activations are rounded to 8 bits on their way into a product. Norms,
rotary tables, vision encoder and embedding stay as they are. Adapter ops are full precision by construction: they do
not exist yet.
"""

from __future__ import annotations

import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import onnx_ir as ir

from ...adapters.errors import UsageError
from ..manifest import LAYOUT, ExportManifest, write_manifest
from .own import graph_info, save_graph
from .tracing import strip_metadata

if TYPE_CHECKING:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

BLOCK = 32
# Activations of a product are rounded to 8 bits, as ONNX Runtime GenAI has them on a CPU: several times as fast as
# products in float32.
ACCURACY_LEVEL = 4


def quantiser_class() -> type[MatMulNBitsQuantizer]:
    """ONNX Runtime's quantiser, without the log of all libraries that importing it switches on.

    Raises:
        UsageError: it is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError as error:
        raise UsageError(
            f"ONNX Runtime's quantiser cannot be imported: {error}.", "Install ONNX Runtime 1.22 or later."
        ) from None
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return MatMulNBitsQuantizer


def quantise_decoder(folder: Path, manifest: ExportManifest, block: int = BLOCK) -> ExportManifest:
    """Quantise the decoder of the base folder ``folder`` in place.

    Args:
        manifest: of the folder.
        block: inputs that share a scale; 16, 32, 64, 128 or 256.

    Returns:
        The new manifest, as written; its precision is int4.

    Raises:
        UsageError: the quantiser is not installed, or found no weight.
    """
    quantiser = quantiser_class()
    target = folder / LAYOUT.decoder
    logger = logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        quantizer = quantiser(str(target), block_size=block, is_symmetric=True, accuracy_level=ACCURACY_LEVEL)
        quantizer.process()
    finally:
        logger.setLevel(level)
    with TemporaryDirectory(dir=folder, prefix=".quantised-") as scratch:
        made = Path(scratch) / LAYOUT.decoder
        quantizer.model.save_model_to_file(str(made), use_external_data_format=True)
        model = ir.load(made)
        if not any(node.op_type == "MatMulNBits" for node in model.graph):
            raise UsageError("The decoder has no constant weight to quantise.", "Export it in fp32 or fp16.")
        strip_metadata(model)
        # Written beside its sources first: they are read while it is written.
        final = Path(scratch) / "final" / LAYOUT.decoder
        final.parent.mkdir()
        save_graph(model, final)
        for name in (LAYOUT.decoder, LAYOUT.data("decoder")):
            (final.parent / name).replace(folder / name)
    graphs = {**manifest.graphs, "decoder": graph_info(ir.load(target))}
    return write_manifest(manifest.model_copy(update={"precision": "int4", "graphs": graphs}), folder)
