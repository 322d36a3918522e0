"""What commands read that no command made: small data in every form, checkpoints, keys."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

RECORDS = {"fit": 160, "calibration": 72, "test": 24}
CAPTIONS = 24


class Materials:
    """Paths by name, made on first use; see :class:`workshop.Workshop`.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    def __getitem__(self, name: str) -> str:
        raise NotImplementedError

    def _model(self) -> str:
        return "reference:mild"

    def _tiny(self) -> Path:
        """A checkpoint of two layers with random weights, for what takes long on eight."""
        from safetykit.bench.zoo import build

        return build("llava", self.folder / "tiny")

    def _tiny_grid(self) -> Path:
        """A comparison of it with and without adapters, which are fitted: one of two seeds, one under a budget."""
        path = self.folder / "grid.yaml"
        path.write_text(
            f"models: {{tiny: {self['tiny']}}}\n"
            "defences:\n"
            f"  guard: {{fit: vlm-guard, data: {self['records']}, settings: {{layers: 1}}}}\n"
            f"  drawn: {{fit: refusal-direction, data: {self['records']}, settings: {{variant: random}}}}\n"
            f"  probe: {{fit: hidden-detect, data: {self['records']}, settings: {{layer: 1}}, refusal: sorry ., "
            "max-over-refusal: 0.5}\n"
            f"benchmarks: {{few: {{data: {self['records']}, limit: 4}}}}\n"
            "max-new-tokens: 2\nseeds: [0, 1]\nchoose-on: calibration\n"
        )
        return path

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

    def _random(self) -> Path:
        """A checkpoint that was not trained, and refuses nothing."""
        from safetykit.toolkit.reference.model import build_model, build_processor, build_tokenizer

        folder = self.folder / "random"
        build_model(seed=1).save_pretrained(folder)
        build_processor(build_tokenizer()).save_pretrained(folder)
        return folder

    def _classifier(self) -> Path:
        """A sequence classifier that knows refusals."""
        from planted_judges import planted_classifier

        return planted_classifier(self.folder / "classifier", {"sorry": "refusal"}, "compliance")

    def _labels(self) -> Path:
        """What people would say of the answers to all records: each is refused."""
        from safetykit.toolkit.data.records import load_records

        path = self.folder / "labels.jsonl"
        lines = [json.dumps({"id": one.id, "outcome": "refused"}) for one in load_records(Path(self["records"]))]
        path.write_text("\n".join(lines) + "\n")
        return path

    def _evaluation(self) -> Path:
        """Answers that are kept."""
        from safetykit.toolkit.data.records import load_records, subset

        found = subset(load_records(Path(self["records"]), ["test"]), 8)
        decisions = [
            {"id": one.id, "label": one.label, "carrier": one.carrier, "tags": list(one.tags)}
            | {"text": "sorry , i can not help", "outcome": "refused", "scores": {}}
            for one in found
        ]
        path = self.folder / "evaluation.json"
        body = {"model": "m", "split": "test", "max_new_tokens": 4, "rows": [], "decisions": decisions}
        path.write_text(json.dumps(body))
        return path

    def _font(self) -> Path:
        import matplotlib

        return Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")

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

    def _grey(self) -> Path:
        from safetykit.toolkit.attacks.pixels import grey

        grey(64).save(path := self.folder / "grey.png")
        return path

    def _conversation(self) -> Path:
        picture = {"type": "image", "image": Path(self["picture"]).name}
        path = self.folder / "conversation.json"
        turns = [[picture, {"type": "text", "text": "what is this ?"}], "it is a thing .", "is it dangerous ?"]
        roles = ("user", "assistant", "user")
        path.write_text(json.dumps([{"role": role, "content": one} for role, one in zip(roles, turns, strict=True)]))
        return path

    def _talks(self) -> Path:
        """Records of a split's two conversations, whose first exchange makes them longer than their last turn."""
        talk = json.loads(Path(self["conversation"]).read_text())
        told = {"split": "test", "response": "no", "messages": talk}
        lines = [{"id": label, "label": label, **told} for label in ("harmful", "harmless")]
        path = Path(self["conversation"]).with_name("talks.jsonl")
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
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

    def _sequence_judge(self) -> Path:
        """A sequence classifier with random weights that knows two outcomes."""
        from transformers import BertConfig, BertForSequenceClassification

        from safetykit.toolkit.reference.model import build_tokenizer

        folder = self.folder / "sequence-judge"
        tokenizer = build_tokenizer()
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        named = {"id2label": {0: "refused", 1: "answered"}, "label2id": {"refused": 0, "answered": 1}}
        BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes, **named)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def _keys(self) -> Path:
        path = self.folder / "keys.txt"
        path.write_text("# of a server\nkey-of-the-workshop-0123456789\n")
        return path

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


def _line(item: Any) -> str:
    """A record or a caption for another folder: its picture's path is absolute."""
    value = item.model_dump(mode="json", exclude_none=True)
    if item.image:
        folder = getattr(item, "folder", None) or item._folder
        value["image"] = str(folder.resolve() / item.image)
    return json.dumps(value)
