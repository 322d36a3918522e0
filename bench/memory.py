"""Memory and time that writing an export takes, by size of the model and by how its checkpoint lies on disk.

    python bench/memory.py -o FOLDER [--size 0.2B …] [--layout shards …] [--precision fp16 …]

For each size a Qwen2.5-VL checkpoint with random bf16 weights is written tensor by tensor: as one file, as shards with
an index, or as a snapshot of the Hugging Face cache whose files are links into its blobs. 7B has the shape of
Qwen2.5-VL-7B-Instruct: 16.6 GB, and as much again for its fp16 export.

Measured in a process of its own: the writing phase of `safetykit export` (tracing the three graphs, streaming the
weights into their data files, fingerprint and checksums), as the peak of resident memory above what is resident once
everything is imported. Parity, which runs both models, is not in it. The exports of a size must hold the same bytes,
whatever the layout.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table

# Layers, width, width of the MLP, heads, heads of keys and values, vocabulary; then the tower's layers and width.
SIZES = {
    "tiny": (2, 256, 512, 2, 1, 4096, 2, 160),
    "0.2B": (12, 1024, 2816, 8, 2, 32000, 4, 320),
    "1.6B": (28, 2048, 5632, 16, 2, 65536, 8, 1280),
    "7B": (28, 3584, 18944, 28, 4, 152064, 32, 1280),
}
LAYOUTS = ("file", "shards", "cache")
HOME = "models--org--model"  # as a cache of the Hub calls a model's folder
PRECISIONS = ("fp16", "int4")
SHARD = 4 * 10**9  # bytes
_PIECE = 2**24  # values


def main(given: Sequence[str] | None = None) -> int:
    """Measure and write the table; with ``--export`` write one export and print what it took."""
    quick = {"size": ["tiny"]}
    parser = arguments(__doc__, quick=quick)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--size", choices=SIZES, action="append", help="0.2B and 1.6B by default")
    parser.add_argument("--layout", choices=LAYOUTS, action="append", help="all by default")
    parser.add_argument("--precision", choices=PRECISIONS, action="append", help="all by default")
    parser.add_argument("--scratch", type=Path, help="where checkpoints and exports are made, and deleted")
    parser.add_argument("--export", type=Path, help="measure one export of this checkpoint, in this process")
    options = parser.parse_args(given)
    if options.export:
        if not options.precision:
            parser.error("--export needs --precision")
        print(json.dumps(measured(options.export, options.out, options.precision[0])))
        return 0
    results = read_results(options.out / "memory.json")
    for size in options.size or ("0.2B", "1.6B"):
        with TemporaryDirectory(dir=options.scratch, prefix="memory-") as scratch:
            for layout in options.layout or LAYOUTS:
                for key, row in _measured_layout(size, layout, options.precision or PRECISIONS, Path(scratch), results):
                    write_results(options.out / "memory.json", results := results | {key: row})
    write_table(options.out / "memory.md", table(results))
    return 0


def _measured_layout(
    size: str, layout: str, precisions: Sequence[str], scratch: Path, known: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is not known yet, by its key, as soon as it is measured."""
    wanted = [precision for precision in precisions if f"{size} {layout} {precision}" not in known]
    if not wanted:
        return
    say(f"making {size} as {layout}")
    checkpoint = write_checkpoint(size, layout, scratch)
    for precision in wanted:
        say(f"exporting {size} from {layout} in {precision}")
        command = [sys.executable, __file__, "--export", checkpoint, "-o", scratch / "export", "--precision", precision]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{size}, {layout}, {precision}: {done.stderr.strip()[-2000:]}")
        yield f"{size} {layout} {precision}", json.loads(done.stdout.splitlines()[-1])
        shutil.rmtree(scratch / "export")
    shutil.rmtree(scratch / HOME)


def measured(checkpoint: Path, out: Path, precision: str) -> dict[str, Any]:
    """Write one export, and say what it took.

    Args:
        out: a folder to be made.
        precision: fp16 or int4.
    """
    import onnxscript.optimizer  # noqa: F401
    import torch
    import torch.onnx
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor  # noqa: F401

    from safetykit.export.base.quantise import quantiser
    from safetykit.export.pipeline.write import write_own
    from safetykit.toolkit.model.vlm import VLM

    torch.set_num_threads(1)
    quantiser()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, start = _memory("VmRSS"), time.perf_counter()
    out.mkdir()
    manifest = write_own(VLM.without_weights(checkpoint), out, precision, lambda _: None)  # type: ignore[arg-type]
    seconds = time.perf_counter() - start
    stored = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    data = {name: digest for name, digest in manifest.files.items() if name.endswith(".onnx.data")}
    return {
        "imports_mb": before,
        "peak_mb": _memory("VmHWM") - before,
        "seconds": seconds,
        "checkpoint_gb": stored / 1e9,
        "written_gb": sum((out / name).stat().st_size for name in data) / 1e9,
        "weights": hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest(),
    }


def _memory(what: str) -> float:
    """Resident memory of this process in MB: ``VmRSS`` now, ``VmHWM`` at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024 / 1e6


def write_checkpoint(size: str, layout: str, scratch: Path) -> Path:
    """A checkpoint folder of this size, with random bf16 weights; never more than a few tensors' pieces in memory."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from safetykit.bench.zoo import build

    model, blobs = scratch / HOME, scratch / HOME / "blobs"
    folder = model / "snapshots" / "main" if layout == "cache" else model
    folder.parent.mkdir(parents=True, exist_ok=True)
    build("qwen2_5_vl", folder)
    (folder / "model.safetensors").unlink()
    config = _sized(json.loads((folder / "config.json").read_text()), size)
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    parts = [shapes] if layout == "file" else list(_shards(shapes))
    names = ["model.safetensors"]
    if layout != "file":
        names = [f"model-{at + 1:05}-of-{len(parts):05}.safetensors" for at in range(len(parts))]
        index = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for file, part in zip(names, parts, strict=True):
        target = folder / file
        if layout == "cache":
            blobs.mkdir(exist_ok=True)
            target = blobs / hashlib.sha256(file.encode()).hexdigest()
            (folder / file).symlink_to(Path("../../blobs") / target.name)
        _write_file(target, part)
    return folder


def _sized(config: dict[str, Any], size: str) -> dict[str, Any]:
    layers, width, inner, heads, groups, vocabulary, tower_layers, tower_width = SIZES[size]
    text, vision = config["text_config"], config["vision_config"]
    for name in ("layer_types", "head_dim", "max_window_layers"):
        text.pop(name, None)
    text |= {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision |= {
        "depth": tower_layers,
        "hidden_size": tower_width,
        "out_hidden_size": width,
        "intermediate_size": tower_width * 171 // 64,
        "num_heads": tower_width // 80,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": list(range(tower_layers))[7::8] or [tower_layers - 1],
    }
    return config | {"dtype": "bfloat16", "text_config": text, "vision_config": vision}


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    part: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if part and 2 * sum(map(math.prod, [*part.values(), shape])) > SHARD:
            yield part
            part = {}
        part[name] = shape
    yield part


def _write_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of bf16 tensors with random signs and sizes; a tensor's values depend on its name alone."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            generator = np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))
            left = math.prod(shape)
            while left:
                count = min(left, _PIECE)
                bits = generator.integers(0, 2**16, count, dtype=np.uint16)
                # Sign and fraction random, exponent such that values lie between 1/64 and 1/32.
                file.write(((bits & 0x807F) | 0x3C80).tobytes())
                left -= count


def table(results: Mapping[str, Any]) -> str:
    """The table, and whether layouts made a difference."""
    head = ("checkpoint", "on disk", "precision", "written", "memory above imports", "time", "per GB of checkpoint")
    rows = [head, ("---", "---", "---", *["---:"] * 4)]
    weights: dict[tuple[str, str], list[str]] = {}
    for key, row in sorted(results.items(), key=lambda item: (list(SIZES).index(item[0].split()[0]), item[0])):
        size, layout, precision = key.split()
        weights.setdefault((size, precision), []).append(row["weights"])
        stored = row["checkpoint_gb"]
        rows.append(
            (
                f"{size} ({stored:.1f} GB)",
                layout,
                precision,
                f"{row['written_gb']:.1f} GB",
                f"{row['peak_mb'] / 1000:.2f} GB",
                f"{row['seconds']:.0f} s",
                f"{row['seconds'] / stored:.0f} s",
            )
        )
    several = [found for found in weights.values() if len(found) > 1]
    verdict = "Layouts were not compared. "
    if several:
        same = all(len(set(found)) == 1 for found in several)
        verdict = f"Weights files of several layouts are {'equal, byte for byte' if same else 'not equal'}. "
    imports = sum(row["imports_mb"] for row in results.values()) / len(results)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"{verdict}Imports take {imports / 1000:.1f} GB.", ""])


if __name__ == "__main__":
    run(main)
