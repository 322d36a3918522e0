"""What command lines in the tests work on: small data, and folders that earlier commands leave, made on first use."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from materials import CAPTIONS, Materials

from safetykit import cli

DEMO = "demo -o {out} --checkpoint mild --json"


@dataclass(frozen=True)
class Outcome:
    """What a command line did: exit code, what it printed, and what it was to write."""

    code: int
    out: str
    err: str
    path: Path

    @property
    def value(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)


def safetykit(*typed: Any) -> Outcome:
    """The command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    arguments = [str(one) for one in typed]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as done:
            code = int(done.code or 0)
    path = next((after for word, after in pairwise(arguments) if word in ("-o", "--out")), "")
    return Outcome(code, out.getvalue(), err.getvalue(), Path(path))


def earlier() -> bytes:
    """A manifest that an earlier command left; the folder that holds it is one of ours."""
    from pydantic import create_model

    from safetykit.adapters.artifact.manifest import dump_sealed

    return dump_sealed(create_model("Earlier", schema_version=(int, 1))())


class Workshop(Materials):
    """Paths by name; each is made once a run, when it is first asked for, most of them by a command.

    Args:
        folder: where they lie; the workers of a run have one together.
        own: an empty folder, for what a command writes.
    """

    def __init__(self, folder: Path, own: Path) -> None:
        self.folder, self.own = folder, own
        self._made: dict[str, str] = {}
        self._runs = 0
        self._held = contextlib.ExitStack()

    def __getitem__(self, name: str) -> str:
        if name == "served":
            return self._address
        if name not in self._made:
            note = self.folder / f"{name}.made"
            with FileLock(f"{note}.lock"):
                if not note.exists():
                    note.write_text(str(getattr(self, f"_{name}")()))
                self._made[name] = note.read_text()
        return self._made[name]

    @cached_property
    def _address(self) -> str:
        """A server of ``export``, which ends with this process."""
        from serving import listening

        return self._held.enter_context(listening(self["export"], name="served"))

    def run(self, line: str) -> Outcome:
        """Run a command line with names in braces; ``{out}`` is a path that is free, ``{taken}`` one that is not."""
        self._runs += 1
        free, taken = self.own / f"out-{self._runs}", self.own / f"taken-{self._runs}"
        words = []
        for word in shlex.split(line):
            if word == "{out}":
                word = str(free)
            elif word == "{taken}":
                taken.mkdir()
                (taken / "old").write_text("old")
                (taken / "safetykit.json").write_bytes(earlier())
                word = str(taken)
            elif word == "{taken_file}":
                taken.write_text('{"model": "old", "rows": [], "decisions": []}')
                word = str(taken)
            elif word.startswith("{") and word.endswith("}"):
                word = self[word[1:-1]]
            words.append(
                re.sub(r"(?<=[=:])\{(\w+)\}$", lambda found: self[found[1]], word)
            )  # NAME={folder}, KIND:{folder}
        return safetykit(*words)

    def kept(self, name: str) -> Outcome:
        """What the command printed that made ``name``, run here or by another worker."""
        path = Path(self[name])
        return Outcome(0, path.with_name(f"{name}.printed").read_text(), "", path)

    @contextlib.contextmanager
    def few_records(self) -> Iterator[None]:
        """Have ``reference`` mean :meth:`_records`."""
        from safetykit.toolkit.data import sources

        few = Path(self["records"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources, "records_path", lambda split: few / f"{split}.jsonl")
            yield

    def _run(self, name: str, *typed: Any) -> Path:
        out = self.folder / name
        done = safetykit(*typed, "-o", out)
        assert done.code == 0, done.err
        out.with_name(f"{name}.printed").write_text(done.out)
        return out

    def _fit(self, name: str, method: str, *options: Any, data: str = "records") -> Path:
        return self._run(name, "fit", method, "reference:mild", "--data", self[data], *options)

    def _bake(self, name: str, *options: Any) -> Path:
        return self._run(name, "export", "reference:mild", "--base-onnx", self["base"], *options)

    def _begun(self) -> Path:
        """What ``data init`` writes."""
        done = safetykit("data", "init", folder := self.folder / "begun")
        assert done.code == 0, done.err
        return folder

    def _base(self) -> Path:
        return self._run("base", "export", "reference:mild")

    def _int4_base(self) -> Path:
        return self._run("int4-base", "export", "reference:mild", "--precision", "int4")

    def _int8_base(self) -> Path:
        """As transformers.js repositories have it: a decoder whose weights and activations are rounded to 8 bits."""
        from foreign_folders import in_transformers_js
        from onnxruntime.quantization import QuantType, quantize_dynamic

        base = Path(self["base"])
        folder = in_transformers_js(base, self.folder / "int8-base")
        target = folder / "onnx" / "decoder_model_merged_quantized.onnx"
        quantize_dynamic(base / "decoder.onnx", target, weight_type=QuantType.QInt8)
        return folder

    def _demo(self) -> Path:
        """What :data:`DEMO` leaves."""
        from drawing import drawn
        from tracing import all_steps

        typed = [word for word in shlex.split(DEMO) if word not in ("-o", "{out}")]
        with all_steps(), drawn():
            return self._run("demo", *typed)

    def _guard(self) -> Path:
        return self._fit("guard", "vlm-guard", "--layers", 4)

    def _rounded_guard(self) -> Path:
        return self._fit("rounded-guard", "vlm-guard", "--layers", 4, "--on", self["int4_base"])

    def _other_guard(self) -> Path:
        return self._fit("other-guard", "vlm-guard", "--layers", 4, "--alpha", 0.5)

    def _held_guard(self) -> Path:
        return self._fit("held-guard", "vlm-guard", "--layers", 4, "--phase", "both", "--hold")

    def _affine(self) -> Path:
        options = ("--fusion", "sequential", "--site", "mlp", "--layers", 3, "--contrast", "carrier")
        return self._fit("affine", "care", *options)

    def _probe(self) -> Path:
        return self._fit("probe", "one-pass", "--fused-layer", 4)

    def _sasa(self) -> Path:
        return self._fit("sasa", "sasa", "--safety-layer", 3, "--fused-layer", 4)

    def _index(self) -> Path:
        return self._run("index", "index", "build", self["captions"], "--model", "reference:mild")

    def _encoded_index(self) -> Path:
        """An index of only some of the captions, by the encoder."""
        lines = Path(self["captions"]).read_text().splitlines()
        some = self.folder / "some.jsonl"
        some.write_text("\n".join(lines[: CAPTIONS * 2 // 3]) + "\n")
        return self._run("encoded-index", "index", "build", some, "--encoder", self["encoder"])

    def _retrieval(self) -> Path:
        return self._fit("retrieval", "retrieval", "--index", self["index"], data="captions")

    def _external(self) -> Path:
        options = ("--index", self["index"], "--external-index")
        return self._fit("external", "retrieval", *options, data="captions")

    def _map(self) -> Path:
        options = ("--data", self["records"], "--pairs", 8, "--neurons", 0)
        return self._run("map", "diagnose", "reference:mild", *options)

    def _export(self) -> Path:
        return self._bake("export", "--adapter", self["guard"])

    def _comparison(self) -> Path:
        return self._run("comparison", "compare", "--config", self["tiny_grid"], "--json")

    def _to_sign(self) -> Path:
        """A copy that is signed again and again."""
        import shutil

        return Path(shutil.copytree(self["guard"], self.folder / "to-sign"))

    def _swappable(self) -> Path:
        """A detector beside a corrector that it was not fitted under, which the export's own options accept."""
        stack = ("--adapter", self["guard"], "--adapter", self["probe"], "--allow-uncorrected-detector")
        return self._bake("swappable", *stack, "--mode", "hot-swap")

    def _external_export(self) -> Path:
        return self._bake("external-export", "--adapter", self["external"], "--external-index", self["index"])
