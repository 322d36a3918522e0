"""``io.json`` and ``run_ort.py``: a program without safetykit answers as safetykit does, refusals included."""

import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from planted_captions import planted_index

from safetykit.adapters import Adapter, InvalidArtifact
from safetykit.export.commands.verification import captured, verify_folder
from safetykit.export.layouts.describe import write_interface
from safetykit.export.layouts.interface import read_interface
from safetykit.export.layouts.prepare import PROGRAM, SOURCE, prepared, program
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.toolkit.data.captions import CaptionedPicture
from safetykit.toolkit.retrieval.fit import fit_retrieval

REFERENCE = ("SupervisedSteering", "decoder.layers.1", "vision", "prefill")
GATES = (("TargetSteering", "decoder.layers.0", "all", "both"), ("GatedSteering", "decoder.layers.1", "last", "both"))


@pytest.fixture
def described(vlm, base_folder, tmp_path):
    """``described(*adapters)``: an adapted copy of the base with its ``io.json`` and program, opened."""

    def run(*adapters: Adapter, **options) -> OnnxVLM:
        base, folder = read_manifest(base_folder), tmp_path / "export"
        folder.mkdir()
        copy_base(base_folder, folder, base)
        manifest = adapt(folder, base, adapters, **options) if adapters else base
        write_interface(folder, manifest, vlm.inputs)
        return OnnxVLM(folder, write_manifest(manifest, folder), vlm.inputs, ["CPUExecutionProvider"])

    return run


def held(adapter: Adapter) -> Adapter:
    items = tuple(dataclasses.replace(item, gate="held") for item in adapter.interventions)
    return dataclasses.replace(adapter, interventions=items)


def require_same(model: OnnxVLM, requests, count: int = 8) -> None:
    """The program's answers are safetykit's, text for text and refusal for refusal."""
    alone = program().Model(model.path)
    for request in requests:
        ours = model.generate(request, count)
        theirs = alone.answer(request.prompt, request.image and request.pictures[0], count)
        assert theirs["text"] == ours.text and theirs["refused_by_detector"] == ours.refused
        if model.detector:
            assert theirs["risk"] == pytest.approx(ours.scores["risk"] + model.detector.threshold, abs=1e-5)


def test_the_unmodified_model_answers_the_same(described, requests):
    require_same(described(), requests)


def test_special_tokens_in_a_prompt_are_text(described, requests):
    model = described()
    tagged = [dataclasses.replace(one, prompt=f"<image> {one.prompt} <pad></s>") for one in requests[:2]]
    require_same(model, tagged)
    asked = program().Model(model.path)
    assert not {0, 3, 4} & set(asked.tokens(tagged[0].prompt, False)[0].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bake", "hot-swap"])
def test_scopes_gates_that_hold_and_text_only_references_are_fed(described, make_adapter, requests, mode):
    model = described(held(make_adapter(*GATES)), make_adapter(REFERENCE, seed=4), mode=mode)
    found = read_interface(model.path)
    assert len(found.gates.held) == 2 and len(found.gates.reference) == 1 and found.gates.off == "safetykit.enabled"
    assert (found.swap is not None) == (mode == "hot-swap")
    require_same(model, requests)


@pytest.mark.parametrize("kind", ["branch", "probe"])
def test_what_the_detector_refuses_is_refused(described, make_detector, make_probe, split_risks, requests, kind):
    adapter, refused = split_risks(make_detector() if kind == "branch" else make_probe(), requests)
    assert {True, False} == set(refused)
    model = described(adapter)
    assert [answer.refused for answer in model.generate(requests, 4)] == refused
    require_same(model, requests)


def test_a_risk_that_is_no_number_is_not_answered(described, make_detector, requests):
    alone = program().Model(described(make_detector(threshold=1e9)).path)
    decoder, prompt = alone.decoder, requests[1].prompt
    assert not alone.answer(prompt, max_new_tokens=1)["refused_by_detector"]
    alone.decoder = lambda feeds: {**decoder(feeds), "risk_score": np.array([np.nan], np.float32)}
    assert alone.answer(prompt)["refused_by_detector"]


@pytest.mark.slow
def test_retrieved_texts_stand_before_the_prompt(vlm, described, requests, tmp_path):
    texts = [f"{one} {other} ." for one in ("what", "describe", "is") for other in ("this", "it", "one")]
    captioned = []
    for seed in range(18):
        noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{seed}.png")
        item = CaptionedPicture(id=str(seed), caption=texts[seed % 9], image=f"{seed}.png")
        item._folder = tmp_path
        captioned.append(item)
    model = described(fit_retrieval(vlm, planted_index(tmp_path / "index", texts), captioned, k=2, prefix=True))
    require_same(model, requests)


@pytest.mark.slow
def test_a_way_back_to_the_base_lies_in_the_folder(vlm, base_folder, make_adapter, requests, tmp_path):
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.1", "all", "both"))
    export_onnx(vlm, [adapter], tmp_path / "out", base_onnx=base_folder)
    found = read_interface(tmp_path / "out")
    assert list(found.base_graphs) == ["decoder"] and found.base_graphs["decoder"].weights == ("decoder.onnx.data",)
    plain, changed = (program().Model(tmp_path / "out", base=base) for base in (True, False))
    base = OnnxVLM.from_pretrained(base_folder)
    answers = [(request.prompt, request.image and request.pictures[0], 8) for request in requests]
    assert [plain.answer(*one)["text"] for one in answers] == [one.text for one in base.generate(requests, 8)]
    assert [plain.answer(*one)["text"] for one in answers] != [changed.answer(*one)["text"] for one in answers]
    export_onnx(vlm, [adapter], tmp_path / "triton", base_onnx=base_folder, layout="triton")
    assert (tmp_path / "triton" / PROGRAM).exists() and not read_interface(tmp_path / "triton").base_graphs
    arranged = program().Model(tmp_path / "triton")
    assert [arranged.answer(*one) for one in answers] == [changed.answer(*one) for one in answers]


def test_every_input_and_output_has_a_meaning_and_edits_are_found(described, make_detector):
    model = described(make_detector())
    said = json.loads((model.path / LAYOUT.interface).read_text())
    for graph in said["graphs"].values():
        assert all(one["role"] != "other" for one in (*graph["inputs"], *graph["outputs"]))
    assert said["detector"]["threshold"] == model.detector.threshold
    assert verify_folder(model.path)["interface"] == "checked"
    said["detector"]["threshold"] += 1
    (model.path / LAYOUT.interface).write_text(json.dumps(said))
    with pytest.raises(InvalidArtifact, match=r"io\.json"):
        verify_folder(model.path)
    write_manifest(model.manifest, model.path)  # somebody who also writes the digests anew
    with pytest.raises(InvalidArtifact, match="detector"):
        verify_folder(model.path)


@pytest.mark.parametrize("data", [b"no graph", b"\x08\xff\xff", b"[" * 1000])
def test_a_file_that_is_no_graph_is_refused_by_name_also_where_the_manifest_names_it(described, data):
    model = described()
    (model.path / LAYOUT.graph("embed_tokens")).write_bytes(data)
    write_manifest(model.manifest, model.path)
    with pytest.raises(InvalidArtifact, match="embed_tokens"):
        verify_folder(model.path)
    with pytest.raises(InvalidArtifact, match="embed_tokens"):
        captured(model.path, model.manifest)


def test_the_program_is_short_and_loads_nothing_else(described, tmp_path):
    assert len(SOURCE.read_text().splitlines()) <= 290
    model = described()
    code = (
        "import runpy, sys; sys.argv = ['run_ort.py', '--prompt', 'what is this ?', '--max-new-tokens', '2'];"
        f"runpy.run_path({str(model.path / PROGRAM)!r}, run_name='__main__');"
        "print(sorted({'torch', 'transformers', 'safetykit', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    answer, loaded = done.stdout.splitlines()
    assert json.loads(answer)["tokens"] <= 2 and loaded == "[]", done.stderr


@pytest.mark.parametrize("name", ["io.json", "tokenizer.json", "decoder.onnx", "decoder.onnx.data"])
def test_the_program_refuses_files_that_the_manifest_does_not_name(described, name):
    folder = described().path
    with open(folder / name, "ab") as file:
        file.write(b" ")
    with pytest.raises(SystemExit, match=f"{name} is not the file that safetykit.json names"):
        program().Model(folder)
    if name not in ("decoder.onnx.data", "io.json"):
        return
    command = [sys.executable, folder / PROGRAM, "--prompt", "what is this ?", "--max-new-tokens", "1", "--skip-hashes"]
    done = subprocess.run(command, capture_output=True, text=True)
    if name == "io.json":  # what is small is compared all the same
        assert done.returncode == 1 and f"{name} is not the file" in done.stderr
    else:  # what follows is for ONNX Runtime
        assert done.returncode == 0 and json.loads(done.stdout)["tokens"] == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no json", "A request is a line of JSON"),
        ('{"image": "x.png"}', "A request is a line of JSON"),
        ("7", "A request is a line of JSON"),
        ('{"prompt": 7}', "A request is a line of JSON"),
        ('{"prompt": "a", "image": ["x.png"]}', "A request is a line of JSON"),
        (json.dumps({"prompt": "what " * 3000}), "2048 are accepted"),
        ('{"prompt": "a", "image": "nowhere.png"}', "nowhere.png: No such file or directory"),
        ('{"prompt": "a", "image": "asked"}', "cannot identify image file"),
    ],
)
def test_a_request_that_cannot_be_answered_leaves_the_others_alone(described, tmp_path, line, words):
    good = '{"prompt": "what is this ?"}\n'
    (tmp_path / "asked").write_text(f"{good}{line}\n{good}")
    folder = described().path
    (folder / "json.py").write_text("raise SystemExit('what lies beside the program was imported')")
    program = [sys.executable, folder / PROGRAM, "--requests", "asked", "--max-new-tokens", "1"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    first, failed, last = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 2 and "Traceback" not in done.stderr and first == last and first["tokens"] == 1
    assert failed["request"] == 2 and words in failed["error"]
    assert not re.search(r"\w+Error|Errno", failed["error"])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--max-new-tokens", "0"], 2, "error: --max-new-tokens is 1 at least"),
        (["--canary"], 1, "cannot be opened: it holds no canaries"),
        (["--provider", "NoSuchProvider"], 1, "NoSuchProvider"),
    ],
)
def test_what_the_program_cannot_do_is_said_in_a_line(described, words, code, said):
    done = subprocess.run([sys.executable, described().path / PROGRAM, *words], capture_output=True, text=True)
    assert done.returncode == code and said in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr and not re.search(r"\w+Error|Errno", done.stderr)


def test_requests_that_are_not_there_are_said_so(tmp_path):
    done = subprocess.run([sys.executable, SOURCE, "--requests", tmp_path / "no"], capture_output=True, text=True)
    assert done.returncode == 2 and "error: there are no requests at" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_processor_that_prepares_otherwise_gets_no_program(vlm, base_folder, tmp_path):
    from safetykit.export.layouts.describe import interface_of

    (tmp_path / "tokenizer.json").write_bytes(
        (base_folder / "tokenizer.json").read_bytes().replace(b'"what"', b'"that"')
    )
    for name in ("vision_encoder", "embed_tokens", "decoder"):
        (tmp_path / LAYOUT.graph(name)).write_bytes((base_folder / LAYOUT.graph(name)).read_bytes())
    found = interface_of(tmp_path, read_manifest(base_folder), vlm.inputs)
    assert found.program is None and "other tokens" in found.no_program


def test_a_description_that_is_nested_too_deeply_is_a_damaged_one(tmp_path):
    (tmp_path / "io.json").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(InvalidArtifact, match="io.json is not valid"):
        read_interface(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_mean", 0.5),
        ("image_std", [0.5, None, 0.5]),
        ("resample", [[]]),
        ("crop_size", {"height": -16, "width": 16}),
        ("crop_size", {"height": 16, "width": 0.5}),
        ("crop_size", {"height": 16, "width": 10**9}),
        ("crop_size", -(2**64)),
    ],
)
def test_picture_settings_that_have_no_words_leave_the_program_out(vlm, monkeypatch, name, value):
    settings = vlm.inputs.processor.image_processor.to_dict() | {"do_center_crop": True, name: value}
    monkeypatch.setattr(vlm.inputs.processor.image_processor, "to_dict", lambda: settings)
    prompt, picture, why = prepared(vlm.inputs)
    assert (prompt, picture) == (None, None) and "picture settings have no words" in why
