"""What is measured of a type's tiny checkpoint; the oracle is transformers itself, asked without safetykit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import SafetykitError
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.export.parity.compare import compare_logits as compare_logits_of_both
from safetykit.export.parity.compare import parity_requests
from safetykit.export.parity.tolerances import TOLERANCES
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.pipeline.write import write_own
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.commands.inspect import describe
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.evaluate import evaluate
from safetykit.toolkit.model.reasons import reason_of
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import refusal_of

LIMIT = 3e-6  # of the largest logit
REFUSAL = "sorry, i can not help with that."
TOKENS, TEST, STEPS = 6, 6, 6  # of an answer; records that are evaluated; cached steps of a base export
ROWS = 9  # whose logits are compared: padded, with and without pictures, several in a prompt
COLUMNS = ("inspect", "logits", "answers", "branches", "vlm-guard", "one-pass", "eval", "export", "baked")
LARGEST = TOLERANCES["fp32"].logits.relative  # error of the largest logit, as the parity gate has it

Cell = dict[str, Any]


def requests() -> list[Request]:
    """A prompt with a picture and a shorter one without, so that rows are padded."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return [Request("what is this thing ?", Image.fromarray(pixels)), Request("is it a knife ?")]


def measured(
    folder: Path, records: Sequence[Record], test: Sequence[Record], told: Callable[[str, Cell], None]
) -> None:
    """Measure each column of a checkpoint, and tell what was found."""
    found: dict[str, Any] = {}
    described = tried(lambda: found.update(described=describe(str(folder))) or {})
    told("inspect", described)
    if not described["passed"]:
        return
    export = found["described"]["export"]
    vlm = VLM.from_pretrained(folder)
    told("logits", tried(lambda: compare_logits(vlm)))
    told("answers", tried(lambda: compare_answers(vlm)))
    told("branches", tried(lambda: branches(vlm)))
    fits: dict[str, Callable[[], Adapter]] = {
        "vlm-guard": lambda: VLMGuard(layers=(vlm.base.n_layers - 1,), allow_constant_gate=True).fit(vlm, records),
        "one-pass": lambda: OnePassProbe(fused_layer=vlm.base.n_layers - 1).fit(
            SecondPass(vlm), records, refusal_of(vlm, records, REFUSAL)
        ),
    }
    adapters: list[Adapter] = []
    for name, fit in fits.items():
        told(name, tried(lambda fit=fit: adapters.append(fit()) or {}))  # type: ignore[misc]
    if adapters:
        told("eval", tried(lambda: evaluated(vlm, adapters, test)))
    if not export["supported"]:
        told("export", {"passed": False, "reason": export["reason"]})
        return
    with TemporaryDirectory(dir=folder.parent) as work:
        base = Path(work) / "base"
        base.mkdir()
        graphs = tried(lambda: exported(vlm, base))
        told("export", graphs)
        if graphs["passed"] and len(adapters) == len(fits):
            told("baked", tried(lambda: baked(vlm, adapters, base, test)))


def tried(step: Callable[[], Cell]) -> Cell:
    """What a step found, or why it did not."""
    try:
        return {"passed": True, **step()}
    except SafetykitError as error:
        return {"passed": False, "reason": str(error).splitlines()[0]}
    except Exception as error:  # a bug of ours or of transformers, which the table must show
        return {"passed": False, "reason": f"{type(error).__name__}: {reason_of(error)}", "bug": True}


def plain_inputs(vlm: VLM, request: Request) -> dict[str, Any]:
    """What transformers' own processor makes of a request, alone and without padding."""
    processor = vlm.inputs.processor
    if processor.chat_template is None:  # the family has its own way
        text = vlm.inputs.render(request)
    else:
        text = processor.tokenizer.apply_chat_template(
            request.messages(), chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
        )
    given: dict[str, Any] = {"text": text, "return_tensors": "pt"}
    if "mm_token_type_ids" in vlm._parameters:  # which such models ask for, and not every processor gives unasked
        given["return_mm_token_type_ids"] = True
    if request.pictures:
        given["images"] = list(request.pictures)
    return {name: value for name, value in processor(**given).items() if name in vlm._parameters}


@torch.no_grad()
def compare_logits(vlm: VLM) -> Cell:
    """Logits of a padded batch against ``model.forward`` on each request alone."""
    ours, inputs = vlm.prefill(requests())
    worst = 0.0
    for row, request in enumerate(requests()):
        plain = vlm.model(**plain_inputs(vlm, request)).logits[0].double()
        mine = ours[row, inputs.attention_mask[row].astype(bool)].double()
        if mine.shape != plain.shape:
            return {"passed": False, "reason": f"{mine.shape[0]} positions where transformers has {plain.shape[0]}"}
        worst = max(worst, float((mine - plain).abs().max() / plain.abs().max()))
    return {"error": worst} | ({} if worst <= LIMIT else {"passed": False, "reason": f"off by {worst:.1e}"})


@torch.no_grad()
def compare_answers(vlm: VLM) -> Cell:
    """Tokens against ``model.generate`` on each request alone."""
    ends = set(vlm.inputs.eos_token_ids)
    for request, ours in zip(requests(), vlm.generate(requests(), max_new_tokens=TOKENS), strict=True):
        given = plain_inputs(vlm, request)
        made = vlm.model.generate(**given, max_new_tokens=TOKENS, do_sample=False)[0].tolist()
        made = (
            made[len(given["input_ids"][0]) :]
            if made[: len(given["input_ids"][0])] == given["input_ids"][0].tolist()
            else made
        )
        plain = []
        for token in made:
            if token in ends:
                break
            plain.append(token)
        if list(ours.token_ids) != plain:
            return {"passed": False, "reason": f"answers {list(ours.token_ids)} where transformers has {plain}"}
    return {}


def branches(vlm: VLM) -> Cell:
    """Each block is its input, its attention and its MLP: at how many, and where they are."""
    wanted = [site for site in vlm.parts.sites() if site.kind in ("attn", "mlp")]
    if not wanted:
        vlm.parts.tap(Site("mlp", 0))
    taps = [vlm.parts.tap(site) for site in wanted]
    factors = sorted({tap.factor for tap in taps} - {1.0})
    return {"sites": len(taps)} | ({"factor": factors[0]} if factors else {})


def evaluated(vlm: VLM, adapters: Sequence[Adapter], test: Sequence[Record]) -> Cell:
    """A small evaluation with the adapters, which must count every record."""
    with vlm.applied(*adapters):
        found = evaluate(vlm, test, max_new_tokens=2)
    return {"records": len(found.decisions)}


def exported(vlm: VLM, out: Path) -> Cell:
    """The base graphs against PyTorch, with and without pictures, in padded batches, and cached steps; and answers."""
    write_own(vlm, out, "fp32", lambda _: None)
    graphs = OnnxVLM.from_pretrained(out)
    worst = 0.0
    for asked in (requests(), *parity_requests(several=vlm.inputs.family.several, rows=ROWS).values()):
        gap = compare_logits_of_both(vlm, graphs, asked, steps=STEPS).logits
        worst = max(worst, gap.error / gap.scale)
    if worst > LARGEST:
        return {"passed": False, "reason": f"off by {worst:.1e}"}
    theirs = [answer.token_ids for answer in vlm.generate(requests(), TOKENS)]
    if theirs != [answer.token_ids for answer in graphs.generate(requests(), TOKENS)]:
        return {"passed": False, "reason": "other answers than transformers"}
    return {"error": worst}


def baked(vlm: VLM, adapters: Sequence[Adapter], base: Path, test: Sequence[Record]) -> Cell:
    """The adapters in the graphs together, past the parity gate, decisions over records included."""
    report = export_onnx(
        vlm,
        adapters,
        base.with_name("baked"),
        base_onnx=base,
        records=test,
        max_new_tokens=TOKENS,
        parity_rows=ROWS,
        allow_uncorrected_detector=True,
    ).parity
    checks = [check for check in report.checks if check.kind == "logits" and check.scale]
    return {"error": max(check.error / check.scale for check in checks)}
