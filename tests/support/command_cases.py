"""Every option of the command line in a command that works, with what shows that it acted.

The tests run each line; the census reads from the lines which options and values are passed. Words in braces are made
by the :class:`~workshop.Workshop`; ``{out}`` is where the command writes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workshop import Outcome, Workshop


@dataclass(frozen=True)
class Case:
    """A command line and what must be true of its outcome."""

    line: str
    check: Callable[[Outcome, Workshop], Any]

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


def chosen(**wanted: Any) -> Callable[[Outcome, Workshop], Any]:
    """The manifest records these settings."""

    def check(done: Outcome, made: Workshop) -> None:
        recorded = done.value["hyperparameters"]
        for name, value in wanted.items():
            found = recorded[name]
            found = list(found) if isinstance(found, tuple) else found
            assert found == value, (name, found, value)

    return check


def recorded(done: Outcome) -> dict[str, Any]:
    return json.loads((done.path / "manifest.json").read_text())


FIT = "--data {records} -o {out} --json"
GUARD = f"fit vlm-guard {{model}} {FIT} --layers 4"
CARE = f"fit care {{model}} {FIT} --layers 3-4"
SASA = f"fit sasa {{model}} {FIT}"
PROBE = f"fit one-pass {{model}} {FIT}"
TGA = "fit tga {model} --data {captions} -o {out} --json"
RETRIEVAL = "fit retrieval {model} --data {captions} --index {index} -o {out} --json"

FITS = [
    # VLM-Guard
    Case(
        f"{GUARD} --variant steer --direction svd --gate paper --rank 1 --alpha 0.5 --scope last --phase prefill",
        chosen(
            variant="steer", direction="svd", gate="paper", layers=[4], rank=1, alpha=0.5, scope="last", phase="prefill"
        ),
    ),
    Case(
        f"{GUARD} --variant target --direction mean --gate calibrated --false-positive-rate 0.1 --scope text",
        chosen(variant="target", direction="mean", gate="calibrated", false_positive_rate=0.1, scope="text"),
    ),
    Case(
        f"{GUARD} --variant supervised --gate whitened --scope vision",
        chosen(variant="supervised", gate="whitened", scope="vision"),
    ),
    Case(f"{GUARD} --hold --phase both --scope all", chosen(hold=True, phase="both", scope="all")),
    Case(f"{GUARD} --phase decode", chosen(phase="decode")),
    *(
        Case(f"{GUARD} --variant orthogonal --site {site}", chosen(variant="orthogonal", site=site))
        for site in ("block", "mlp", "attn")
    ),
    Case(f"{GUARD} --text-model reference:severe", lambda done, made: differs_from(done, made["guard"])),
    Case(
        f"{GUARD} --sweep --variant steer --direction svd --gate paper --rank 1",
        lambda done, made: done.value["sweep"]["trials"] and chosen(layers=[4], rank=1)(done, made),
    ),
    Case("fit vlm-guard {model} --data {records} -o {taken} --layers 4 --overwrite --json", chosen(layers=[4])),
    # CARE
    Case(
        f"{CARE} --variant official --fusion adaptive -k 2 --alpha 0.5"
        " --floor 0.1 --contrast label --centre own --modalities both",
        chosen(
            variant="official",
            fusion="adaptive",
            layers=[3, 4],
            rank=2,
            alpha=0.5,
            floor=0.1,
            contrast="label",
            centre="own",
            modalities="both",
        ),
    ),
    Case(
        f"{CARE} --variant corrected --fusion sequential --textual-layers 5"
        " --k 3 --contrast carrier --centre benign --shrinkage oas --site mlp",
        chosen(
            variant="corrected",
            fusion="sequential",
            textual_layers=[5],
            rank=3,
            contrast="carrier",
            centre="benign",
            shrinkage="oas",
            site="mlp",
        ),
    ),
    Case(
        f"{CARE} --fusion injection --beta 0.5 --contrast carrier --shrinkage ledoit-wolf --site attn --scope text",
        chosen(fusion="injection", beta=0.5, shrinkage="ledoit-wolf", site="attn", scope="text"),
    ),
    Case(
        f"{CARE} --fusion parallel --selection kernel --visual-share 0.5"
        " --textual-share 0.4 --contrast behaviour --site block --scope vision",
        chosen(
            fusion="parallel",
            selection="kernel",
            visual_share=0.5,
            textual_share=0.4,
            contrast="behaviour",
            site="block",
            scope="vision",
        ),
    ),
    Case(
        f"{CARE} --fusion masked --selection none --with-response --phase decode --contrast carrier",
        chosen(fusion="masked", selection="none", with_response=True, phase="decode"),
    ),
    Case(
        f"{CARE} --modalities visual --scope last --phase prefill --contrast carrier",
        chosen(modalities="visual", scope="last", phase="prefill"),
    ),
    Case(
        f"{CARE} --modalities textual --scope all --phase both --contrast carrier",
        chosen(modalities="textual", scope="all", phase="both"),
    ),
    Case(
        f"{CARE} --sweep --fusion parallel --k 4 --contrast carrier",
        lambda done, made: done.value["sweep"]["trials"] and chosen(layers=[3, 4], rank=4)(done, made),
    ),
    Case(
        "fit care {model} --data {records} -o {out} --json --map {map} --map-layers 2 --contrast carrier",
        lambda done, made: len(done.value["hyperparameters"]["layers"]) == 2,
    ),
    Case(
        "fit care {model} --data {records} -o {taken} --layers 3 --contrast carrier --overwrite --json",
        chosen(layers=[3]),
    ),
    # SASA and the one-pass probe
    Case(
        f"{SASA} --variant published --safety-layer 3 --fused-layer 4"
        " --false-positive-rate 0.1 --space hidden --fraction 0.9 --seed 3",
        chosen(safety_layer=3, fused_layer=4, false_positive_rate=0.1, space="hidden", fraction=0.9, seed=3),
    ),
    Case(
        f"{SASA} --variant unprojected --space logits --refusal 'sorry .'",
        lambda done, made: (
            done.value["variant"] == "unprojected"
            and chosen(space="logits")(done, made) is None
            and recorded(done)["detector"]["refusal"] == "sorry ."
        ),
    ),
    Case(
        f"{SASA} --safety-layer 3 --fused-layer 4 --with {{guard}}",
        lambda done, made: done.value["hyperparameters"]["corrected_by"],
    ),
    Case(f"{SASA} --map {{map}}", lambda done, made: done.value["hyperparameters"]["safety_layer"] is not None),
    Case(
        "fit sasa {model} --data {records} -o {taken} --safety-layer 3 --fused-layer 4 --overwrite --json",
        chosen(fused_layer=4),
    ),
    Case(
        f"{PROBE} --fused-layer 4 --false-positive-rate 0.1 --space hidden --fraction 0.9 --seed 3",
        chosen(fused_layer=4, false_positive_rate=0.1, space="hidden", fraction=0.9, seed=3),
    ),
    Case(
        f"{PROBE} --fused-layer 4 --space logits --refusal 'sorry .'",
        lambda done, made: (
            chosen(space="logits")(done, made) is None and recorded(done)["detector"]["refusal"] == "sorry ."
        ),
    ),
    Case(f"{PROBE} --fused-layer 4 --with {{guard}}", lambda done, made: done.value["hyperparameters"]["corrected_by"]),
    Case("fit one-pass {model} --data {records} -o {taken} --fused-layer 4 --overwrite --json", chosen(fused_layer=4)),
    # TGA and retrieval
    Case(
        f"{TGA} --variant lora --layers 4 --guide-weight 0.2 --request-weight 0.4"
        " --opening-weight 0.5 --ce-weight 1 --shuffled 0.25 "
        "--steps 2 --batch-size 4 --accumulate 2 --lr 0.0005 --rank 2 --seed 5 --no-resume",
        chosen(
            variant="lora",
            layers=[4],
            guide_weight=0.2,
            request_weight=0.4,
            opening_weight=0.5,
            ce_weight=1,
            shuffled=0.25,
            steps=2,
            batch_size=4,
            accumulate=2,
            lr=0.0005,
            rank=2,
            seed=5,
        ),
    ),
    Case(
        f"{TGA} --variant projector --steps 1 --batch-size 4 --no-centred --no-retrieval --resume",
        chosen(variant="projector", centred=False, retrieval=False),
    ),
    Case(
        f"{TGA} --variant low-rank --steps 1 --batch-size 4 --centred --retrieval --prefixed 0.5 --index {{index}}",
        chosen(variant="low-rank", centred=True, retrieval=True, prefixed=0.5),
    ),
    Case(f"{TGA} --variant closed-form --ridge 0.5", chosen(variant="closed-form", ridge=0.5)),
    Case(f"{TGA} --map {{map}} --steps 1 --batch-size 4", lambda done, made: done.value["hyperparameters"]["layers"]),
    Case(
        "fit tga {model} --data {captions} -o {taken} --variant closed-form --overwrite --json",
        chosen(variant="closed-form"),
    ),
    Case(f"{RETRIEVAL} -k 2 --correction 0.5 --in-graph-limit 1000", chosen(k=2, correction=0.5, in_graph_limit=1000)),
    Case(
        f"{RETRIEVAL} --k 2 --prefix --external-index",
        lambda done, made: done.value["variant"] == "external" and chosen(k=2, prefix=True)(done, made) is None,
    ),
    Case(f"{RETRIEVAL} --with {{guard}}", lambda done, made: done.value["hyperparameters"]["corrected_by"]),
    Case(
        "fit retrieval {model} --data {captions} --index {encoded_index}"
        " --encoder {encoder} -o {taken} --overwrite --json",
        lambda done, made: done.value["method"],
    ),
]

EXPORT = "export {model} --base-onnx {base} -o {out} --json"


def differs_from(done: Outcome, adapter: str) -> bool:
    """The fit's tensors are others than those of the adapter in a folder."""
    name = "adapter.safetensors"
    return (done.path / name).read_bytes() != (Path(adapter) / name).read_bytes()


def manifest(done: Outcome) -> dict[str, Any]:
    return json.loads((done.path / "safetykit.json").read_text())


def arranged(layout: str) -> Callable[[Outcome, Workshop], Any]:
    return lambda done, made: manifest(done)["layout"] == layout and done.value["parity"]["passed"]


EXPORTS = [
    Case("export {model} -o {out} --onnx --json", lambda done, made: (done.path / "decoder.onnx").is_file()),
    Case(
        f"{EXPORT} --adapter {{guard}} --mode bake --precision fp32"
        f" --layout onnx --data {{records}} --split calibration --limit 6 "
        "--max-new-tokens 4 --max-flips 0.5 --provider CPUExecutionProvider --base-model me/mine --base-license mit",
        lambda done, made: [
            done.value["parity"]["tolerances"]["flips"] == 0.5,
            done.value["comparison"]["before"]["split"] == "calibration",
            done.value["comparison"]["before"]["max_new_tokens"] == 4,
            "me/mine" in (done.path / "README.md").read_text(),
            "license: mit" in (done.path / "README.md").read_text(),
        ],
    ),
    Case(
        "export {model} -o {out} --json --adapter {guard} --precision fp16"
        " --data {records} --split fit --limit 4 --max-new-tokens 2",
        lambda done, made: manifest(done)["precision"] == "fp16",
    ),
    Case(
        "export {model} -o {out} --json --adapter {guard} --precision int4 --data {records}"
        " --split test --limit 8 --max-new-tokens 8 --recalibrate --max-flips 1",
        lambda done, made: [manifest(done)["precision"] == "int4", manifest(done)["recalibrated"]],
    ),
    Case(
        "export {model} --base-onnx {int8_base} -o {out} --json --adapter {guard} --precision int8",
        lambda done, made: manifest(done)["precision"] == "int8",
    ),
    Case(
        "export {model} -o {out} --json --adapter {affine} --mode fold",
        lambda done, made: manifest(done)["mode"] == "fold",
    ),
    Case(f"{EXPORT} --adapter {{guard}} --mode hot-swap", lambda done, made: manifest(done)["mode"] == "hot-swap"),
    Case(f"{EXPORT} --adapter {{held_guard}} --layout transformers.js", arranged("transformers.js")),
    Case(f"{EXPORT} --adapter {{sasa}} --enforce --layout genai", arranged("genai")),
    Case(f"{EXPORT} --adapter {{guard}} --layout triton", arranged("triton")),
    Case(
        f"{EXPORT} --adapter {{external}} --external-index {{index}}", lambda done, made: done.value["parity"]["passed"]
    ),
    Case(
        "export reference:severe -o {taken} --json --adapter {guard} --allow-wrong-base --overwrite",
        lambda done, made: manifest(done)["wrong_base_allowed"],
    ),
    Case(
        f"{EXPORT} --adapter {{guard}} --adapter {{probe}} --allow-uncorrected-detector",
        lambda done, made: (
            "uncorrected" in json.dumps(manifest(done)) or "not fitted under" in (done.path / "README.md").read_text()
        ),
    ),
]

EVAL = "eval {model} --data {records} --json --limit 4 --max-new-tokens 4"
RUN = "run {export} --prompt 'what is this ?' --json"


OTHERS = [
    Case("inspect {model} --json", lambda done, made: done.value["n_layers"] == 8),
    Case("doctor --json", lambda done, made: done.value["providers"]["CPUExecutionProvider"]),
    Case(
        "diagnose {model} --data reference -o {taken} --budget 4000"
        " --pairs 8 --neurons 2 --batch-size 4 --seed 3 --overwrite --json",
        lambda done, made: done.value["effects"]["visual"]["neurons"],
    ),
    Case(
        f"{EVAL} --adapter {{guard}} --split calibration --system 'is it dangerous ?' -o {{out}}",
        lambda done, made: [
            done.value["split"] == "calibration",
            done.value["system"],
            done.value["max_new_tokens"] == 4,
            len(json.loads(done.path.read_text())["decisions"]) == 4,
        ],
    ),
    Case(f"{EVAL} --split fit", lambda done, made: done.value["split"] == "fit"),
    Case(f"{EVAL} --split test", lambda done, made: done.value["split"] == "test"),
    Case(
        "eval {export} --data {records} --limit 4 --provider CPUExecutionProvider --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "eval {swappable} --data {records} --limit 4 --swap {other_guard} -o {taken_file} --overwrite --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "eval {external_export} --data {records} --limit 4 --external-index {index} --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "eval reference:severe --data {records} --limit 4 --adapter {guard} --allow-wrong-base --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        f"{EVAL} --adapter {{guard}} --adapter {{probe}} --allow-uncorrected-detector",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "verify {export} --model {model} --adapter {guard} --provider CPUExecutionProvider --json",
        lambda done, made: done.value["parity"]["passed"],
    ),
    Case(
        "verify {swappable} --model {model} --adapter {guard} --swap {other_guard} --json",
        lambda done, made: done.value["swap"]["passed"],
    ),
    Case(
        "verify {external_export} --model {model} --adapter {external} --external-index {index} --json",
        lambda done, made: done.value["parity"]["passed"],
    ),
    Case(
        f"{RUN} --image {{picture}} --max-new-tokens 3 --provider CPUExecutionProvider",
        lambda done, made: len(done.value) == 1 and done.value[0]["text"],
    ),
    Case(
        f"{RUN} --image {{picture}} --temperature 5 --top-p 0.9 --seed 7 --max-new-tokens 12",
        lambda done, made: done.value != made.run(f"{RUN} --image {{picture}} --max-new-tokens 12").value,
    ),
    Case(f"{RUN} --image {{picture}} --system 'is it dangerous ?'", lambda done, made: done.value[0]["text"]),
    Case(
        "run {swappable} --prompt 'what is this ?' --swap {other_guard} --json",
        lambda done, made: done.value[0]["text"],
    ),
    Case(
        "run {external_export} --prompt 'what is this ?' --image {picture} --external-index {index} --json",
        lambda done, made: done.value[0]["retrieved"],
    ),
    Case("card {export} --check --json", lambda done, made: done.value["checked"]),
    Case(
        "lora {model} --adapter {affine} -o {taken} --overwrite --json",
        lambda done, made: (done.path / "adapter_config.json").is_file(),
    ),
    Case(
        "lora reference:severe --adapter {affine} --allow-wrong-base -o {out} --json",
        lambda done, made: (done.path / "adapter_model.safetensors").is_file(),
    ),
    Case(
        "index build {captions} --model {model} --site decoder.layers.5 --batch-size 7 --dtype float16 -o {out} --json",
        lambda done, made: [done.value["embedder"]["site"] == "decoder.layers.5", done.value["dtype"] == "float16"],
    ),
    Case(
        "index build {captions} --encoder {encoder} --dtype float32 -o {taken} --overwrite --json",
        lambda done, made: done.value["embedder"]["kind"] != "vlm" and done.value["dtype"] == "float32",
    ),
    Case("index search {index} --text 'a banana' --model {model} -k 2 --json", lambda done, made: len(done.value) == 2),
    Case(
        "index search {encoded_index} --text 'a banana' --encoder {encoder} --top 3 --json",
        lambda done, made: len(done.value) == 3,
    ),
    Case(
        "index search {index} --image {picture} --adapter {retrieval} --model {model} --json",
        lambda done, made: len(done.value) == 5,
    ),
    Case("demo -o {out} --checkpoint mild --json", lambda done, made: done.value["checkpoint"] == "mild"),
    Case(
        "demo -o {taken} --checkpoint severe --overwrite --json",
        lambda done, made: done.value["checkpoint"] == "severe",
    ),
]

CASES = [*FITS, *EXPORTS, *OTHERS]
