"""What command lines in the tests work on: small data, and folders that earlier commands leave, made on first use."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from safetykit import cli

DEMO = "demo -o {out} --checkpoint mild --json"
RECORDS = {"fit": 160, "calibration": 72, "test": 24}
CAPTIONS = 24


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


class Workshop:
    """Paths by name; each is made once a run, when it is first asked for, most of them by a command.

    Args:
        folder: where they lie; the workers of a run have one together.
        own: an empty folder, for what a command writes.
    """

    def __init__(self, folder: Path, own: Path) -> None:
        self.folder, self.own = folder, own
        self._made: dict[str, str] = {}
        self._runs = 0

    def __getitem__(self, name: str) -> str:
        if name not in self._made:
            note = self.folder / f"{name}.made"
            with FileLock(f"{note}.lock"):
                if not note.exists():
                    note.write_text(str(getattr(self, f"_{name}")()))
                self._made[name] = note.read_text()
        return self._made[name]

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
            words.append(re.sub(r"(?<==)\{(\w+)\}$", lambda found: self[found[1]], word))  # NAME={folder}
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

    def _model(self) -> str:
        return "reference:mild"

    def _tiny(self) -> Path:
        """A checkpoint of two layers with random weights, for what takes long on eight."""
        from safetykit.bench.zoo import build

        return build("llava", self.folder / "tiny")

    def _records(self) -> Path:
        """Some of the reference records of each split, in a folder of their own."""
        from safetykit.toolkit.data.records import load_records, subset
        from safetykit.toolkit.data.sources import data_path

        folder = self.folder / "records"
        folder.mkdir()
        lines = []
        for split, count in RECORDS.items():
            for record in subset(load_records(data_path("reference"), [split]), count):
                lines.append(_line(record))
        (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
        return folder

    def _unpacked(self) -> Path:
        """The same records in Parquet with their pictures, and one whose picture is none."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        from safetykit.toolkit.data.records import load_records

        rows = []
        for record in load_records(Path(self["records"])):
            row = record.model_dump(mode="json")
            if (picture := record.picture()) is not None:
                picture.save(held := io.BytesIO(), "PNG")
                row["image"] = {"bytes": held.getvalue(), "path": None}
            rows.append(row)
        bad = {**rows[0], "id": "bad", "image": {"bytes": b"no picture", "path": None}}
        path = self.folder / "unpacked.parquet"
        parquet.write_table(pa.Table.from_pylist([*rows, bad]), path, row_group_size=32)
        return path

    def _captions(self) -> Path:
        from safetykit.toolkit.data.captions import captions_path, load_captions

        path = self.folder / "captions.jsonl"
        some = load_captions(captions_path("reference"))[:CAPTIONS]
        path.write_text("\n".join(_line(item) for item in some) + "\n")
        return path

    def _picture(self) -> Path:
        from safetykit.toolkit.data.records import load_records
        from safetykit.toolkit.data.sources import data_path

        record = next(one for one in load_records(data_path("reference"), ["test"]) if one.carrier == "image")
        path = self.folder / "picture.png"
        record.picture().save(path)
        return path

    def _conversation(self) -> Path:
        picture = {"type": "image", "image": Path(self["picture"]).name}
        path = self.folder / "conversation.json"
        turns = [[picture, {"type": "text", "text": "what is this ?"}], "it is a thing .", "is it dangerous ?"]
        roles = ("user", "assistant", "user")
        path.write_text(json.dumps([{"role": role, "content": one} for role, one in zip(roles, turns, strict=True)]))
        return path

    def _published(self, kind: str) -> Path:
        """A data set as its publishers have it, in small."""
        from published import PUBLISHED

        PUBLISHED[kind].make(folder := self.folder / f"published-{kind}")
        return folder

    def _figstep(self) -> Path:
        return self._published("figstep")

    def _drawn_steps(self) -> Path:
        return Path(self["figstep"]) / "data/images/SafeBench"

    def _begun(self) -> Path:
        """What ``data init`` writes."""
        done = safetykit("data", "init", folder := self.folder / "begun")
        assert done.code == 0, done.err
        return folder

    def _drawn_sheet(self) -> Path:
        return self._run("sheet.html", "data", "show", self["begun"])

    def _table(self) -> Path:
        """A table with columns of its own names, of which one row names a picture that is not there."""
        path = self.folder / "table.csv"
        path.write_text("asked,shown\nwhat is this ?,\nwhat is that ?,nothing.png\n")
        return path

    def _encoder(self) -> Path:
        """A text encoder with random weights."""
        import torch
        from transformers import BertConfig, BertModel

        from safetykit.toolkit.reference.model import build_tokenizer

        folder = self.folder / "encoder"
        tokenizer = build_tokenizer()
        torch.manual_seed(1)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        kinds = {"": "Transformer", "1_Pooling": "Pooling"}
        modules = [
            {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for at, (path, kind) in enumerate(kinds.items())
        ]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
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

    def _keys(self) -> Path:
        path = self.folder / "keys.txt"
        path.write_text("# of a server\nkey-of-the-workshop-0123456789\n")
        return path

    def _to_sign(self) -> Path:
        """A copy that is signed again and again."""
        import shutil

        return Path(shutil.copytree(self["guard"], self.folder / "to-sign"))

    def _root(self) -> Path:
        """A root's certificate, beside the key and certificate that it gave ``build``."""
        from identities import Signer

        root = Signer(self.folder, "root")
        Signer(self.folder, "build", root)
        return root.certificate

    def _signing_key(self) -> Path:
        return Path(self["root"]).with_name("build.key")

    def _certificate(self) -> Path:
        return Path(self["root"]).with_name("build.pem")

    def _swappable(self) -> Path:
        """A detector beside a corrector that it was not fitted under, which the export's own options accept."""
        stack = ("--adapter", self["guard"], "--adapter", self["probe"], "--allow-uncorrected-detector")
        return self._bake("swappable", *stack, "--mode", "hot-swap")

    def _external_export(self) -> Path:
        return self._bake("external-export", "--adapter", self["external"], "--external-index", self["index"])


def _line(item: Any) -> str:
    """A record or a caption for another folder: its picture's path is absolute."""
    value = item.model_dump(mode="json", exclude_none=True)
    if item.image:
        folder = getattr(item, "folder", None) or item._folder
        value["image"] = str(folder.resolve() / item.image)
    return json.dumps(value)
