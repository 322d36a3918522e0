"""Data sets in the layout of their publishers, in small; their words are abstract, and Pillow draws their pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Published:
    """A data set as it lies on disk.

    Attributes:
        make: fills a folder.
        table: the file with its rows, relative to the folder.
        records: how many it holds.
        labels: records by label.
        carriers: records by carrier.
        options: what its import needs besides.
        picture: one of its pictures, relative to the folder; empty without any.
        field: a column or key that every row must have.
        names: the field with the path of a picture, if rows hold one.
        pictures_only: there is no table, and a picture that is not there is none that is missing.
    """

    make: Callable[[Path], None]
    table: str
    records: int
    labels: dict[str, int]
    carriers: dict[str, int]
    options: tuple[str, ...] = ()
    picture: str = ""
    field: str = ""
    names: str = ""
    pictures_only: bool = False


def draw(path: Path, colour: int = 0) -> None:
    """A small picture in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour % 256, 40, 90)).save(path)


def write_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))


def _mm_safetybench(folder: Path) -> None:
    for at, scenario in enumerate(("01-Illegal_Activitiy", "02-HateSpeech")):
        asked = {
            "Question": f"a question {at}",
            "Changed Question": f"a changed question {at}",
            "Key Phrase": "a thing",
            "Phrase Type": "activity",
            "Rephrased Question": f"a question about the words in the picture {at}",
            "Rephrased Question(SD)": f"a question about the thing in the picture {at}",
        }
        write_json(folder / f"data/processed_questions/{scenario}.json", {"0": asked, "1": asked})
        for kind in ("SD", "SD_TYPO", "TYPO"):
            for number in range(2):
                draw(folder / f"data/imgs/{scenario}/{kind}/{number}.jpg", 10 * at + number)


def _figstep(folder: Path) -> None:
    rows = [
        {
            "dataset": "ForbidQI",
            "category_id": category,
            "task_id": 1,
            "category_name": f"topic {category}",
            "question": "a question",
            "instruction": "Steps to do a thing.",
        }
        for category in (1, 2)
    ]
    write_table(folder / "data/question/safebench.csv", rows)
    for row in rows:
        draw(folder / f"data/images/SafeBench/query_ForbidQI_{row['category_id']}_1_6.png", row["category_id"])


def _jailbreakv(folder: Path) -> None:
    rows = []
    for at, kind in enumerate(("Template", "Persuade", "Logic", "figstep", "SD", "SD_typo", "typo")):
        name = f"{'llm_transfer_attack' if at < 3 else 'figstep'}/{kind}_{at}.png"
        rows.append(
            {
                "id": at,
                "jailbreak_query": f"an attack of kind {kind}",
                "redteam_query": "a question",
                "format": kind,
                "policy": "Fraud",
                "image_path": name,
                "from": "GPT",
                "selected_mini": "False",
                "transfer_from_llm": str(at < 3),
            }
        )
        draw(folder / "JailBreakV_28K" / name, at)
    write_table(folder / "JailBreakV_28K/JailBreakV_28K.csv", rows)


def _vlguard(folder: Path) -> None:
    safe = [
        {"safe_instruction": "What is this?", "response": "A thing."},
        {"unsafe_instruction": "a harmful request", "response": "I cannot help with that."},
    ]
    unsafe = [{"instruction": "a request about it", "response": "I cannot help with that."}]
    about = {"harmful_category": "privacy", "harmful_subcategory": "personal data"}
    rows = [
        {"id": "s1", "image": "bad_ads/s1.png", "safe": True, "instr-resp": safe},
        {"id": "u1", "image": "privacy/u1.jpg", "safe": False, **about, "instr-resp": unsafe},
    ]
    write_json(folder / "test.json", rows)
    draw(folder / "test/bad_ads/s1.png", 1)
    draw(folder / "test/privacy/u1.jpg", 2)


def _harmbench(folder: Path) -> None:
    rows = [
        {
            "Behavior": f"a behaviour {at}",
            "FunctionalCategory": kind,
            "SemanticCategory": "illegal",
            "Tags": kind,
            "ContextString": context,
            "BehaviorID": f"behaviour_{at}",
        }
        for at, (kind, context) in enumerate((("standard", ""), ("contextual", "a text,\nof two lines")))
    ]
    write_table(folder / "data/behavior_datasets/harmbench_behaviors_text_all.csv", rows)


def _harmbench_multimodal(folder: Path) -> None:
    rows = [
        {
            "BehaviorID": f"seen_{at}",
            "Behavior": f"a behaviour about the picture {at}",
            "SemanticCategory": "illegal",
            "Tags": "",
            "ImageFileName": f"{at}.png",
            "ImageDescription": "a thing",
            "RedactedImageDescription": "a thing",
        }
        for at in range(2)
    ]
    write_table(folder / "data/behavior_datasets/harmbench_behaviors_multimodal_all.csv", rows)
    for at in range(2):
        draw(folder / f"data/multimodal_behavior_images/{at}.png", at)


def _xstest(folder: Path) -> None:
    rows = [
        {"id": 1, "prompt": "a harmless request", "type": "homonyms", "label": "safe", "focus": "a", "note": ""},
        {"id": 2, "prompt": "a harmful one", "type": "contrast_homonyms", "label": "unsafe", "focus": "a", "note": ""},
    ]
    write_table(folder / "xstest_prompts.csv", rows)


def _or_bench(folder: Path) -> None:
    for part in ("80k", "hard-1k", "toxic"):
        write_table(folder / f"or-bench-{part}.csv", [{"prompt": f"a request of {part}", "category": "privacy"}])


def _mossbench(folder: Path) -> None:
    found = {}
    for at in range(1, 3):
        found[str(at)] = {
            "image": f"images/{at}.png",
            "question": f"a request {at}",
            "short description": "a thing",
            "metadata": {"over": f"type {at}", "human": 0, "child": 0, "syn": 0, "ocr": 0, "harm": [1]},
        }
        draw(folder / f"data/images/{at}.png", at)
    write_json(folder / "data/images_information/information.json", found)


def _siuo(folder: Path) -> None:
    rows = [
        {
            "question_id": 1000 + at,
            "image": f"S-0{at}.png",
            "question": f"a request {at}",
            "category": "self-harm",
            "safety_warning": "a warning",
            "reference_answer": "an answer",
        }
        for at in range(2)
    ]
    write_json(folder / "siuo_gen.json", rows)
    for row in rows:
        draw(folder / "images" / row["image"], row["question_id"])


def _hateful_memes(folder: Path) -> None:
    rows = [{"id": at, "img": f"img/0{at}.png", "label": at, "text": "words"} for at in range(2)]
    write_lines(folder / "dev_seen.jsonl", rows)
    for row in rows:
        draw(folder / row["img"], row["id"])


def _advbench(folder: Path) -> None:
    rows = [{"goal": f"a goal {at}", "target": "Sure, here is a thing"} for at in range(2)]
    write_table(folder / "data/advbench/harmful_behaviors.csv", rows)


def _strongreject(folder: Path) -> None:
    rows = [{"category": "Violence", "source": "custom", "forbidden_prompt": f"a prompt {at}"} for at in range(2)]
    write_table(folder / "strongreject_dataset/strongreject_dataset.csv", rows)


def _malicious_instruct(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "data/MaliciousInstruct.txt").write_text("an instruction\nanother instruction\n")


def _csv(folder: Path) -> None:
    rows = [
        {"prompt": f"a request {at}", "label": label, "image": f"pictures/{at}#1.png" if at else ""}
        for at, label in enumerate(("harmful", "safe", "1"))
    ]
    write_table(folder / "mine.csv", rows)
    for at in (1, 2):
        draw(folder / f"pictures/{at}#1.png", at)


def _bytes(colour: int) -> bytes:
    Image.new("RGB", (8, 8), (colour, 40, 90)).save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def _mm_vet(folder: Path) -> None:
    found = {}
    for at in range(2):
        found[f"v1_{at}"] = {
            "imagename": f"v1_{at}.png",
            "question": f"a question {at}",
            "answer": "a thing <OR> another",
            "imagesource": "drawn",
            "capability": ["ocr", "math"],
        }
        draw(folder / f"images/v1_{at}.png", at)
    write_json(folder / "mm-vet.json", found)


def _mme(folder: Path) -> None:
    questions = "Is it a thing? Please answer yes or no.\tYes\nIs it another? Please answer yes or no.\tNo\n"
    for table, picture in (
        ("artwork/questions_answers_YN/1.txt", "artwork/images/1.jpg"),
        ("color/2.txt", "color/2.png"),
    ):
        draw(folder / picture, len(table))
        (folder / table).parent.mkdir(parents=True, exist_ok=True)
        (folder / table).write_text(questions)


def _pope(folder: Path) -> None:
    for part in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": at, "image": "COCO_val2014_1.jpg", "text": f"Is there a thing {at}?", "label": answer}
            for at, answer in enumerate(("yes", "no"), start=1)
        ]
        write_lines(folder / f"output/coco/coco_pope_{part}.json", rows)
    draw(folder / "val2014/COCO_val2014_1.jpg", 3)


def _scienceqa(folder: Path) -> None:
    about = {"question": "Which one?", "choices": ["this", "that"], "answer": 1, "subject": "natural science"}
    found = {
        "1": {**about, "hint": "a hint", "image": None, "split": "test"},
        "2": {**about, "hint": "", "image": "image.png", "split": "train"},
        "3": {**about, "hint": "", "image": "image.png", "split": "test"},
    }
    write_json(folder / "data/scienceqa/problems.json", found)
    draw(folder / "data/scienceqa/images/test/3/image.png", 3)


def _mmbench(folder: Path) -> None:
    rows = []
    for index, letters in ((1, "AB"), (1_000_001, "BA")):
        options = dict(zip(letters, ("this", "that"), strict=True))
        rows.append(
            {
                "index": index,
                "question": "Which one?",
                "hint": "nan",
                "A": options["A"],
                "B": options["B"],
                "C": "",
                "D": "",
                "answer": letters[0],
                "category": "colour",
                "image": base64.b64encode(_bytes(5)).decode(),
            }
        )
    write_table(folder / "MMBench_DEV_EN.tsv", rows, "\t")


def _textvqa(folder: Path) -> None:
    rows = [
        {"question_id": at, "question": "What does it say?", "image_id": f"0{at}", "answers": ["a", "b", "b"]}
        for at in range(2)
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": rows})
    for row in rows:
        draw(folder / f"train_images/{row['image_id']}.jpg", row["question_id"])


def _llava(folder: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A thing."},
        {"from": "human", "value": "And that?"},
        {"from": "gpt", "value": "Another."},
    ]
    rows = [{"id": "a", "conversations": turns[2:]}, {"id": "b", "image": "coco/b.jpg", "conversations": turns}]
    write_json(folder / "mine.json", rows)
    draw(folder / "coco/b.jpg", 1)


def _json(folder: Path) -> None:
    rows = [
        {"question": "a request", "unsafe": False, "image": "a.webp"},
        {"question": "a harmful request", "unsafe": True, "image": "b.webp", "carrier": "typographic"},
    ]
    write_lines(folder / "mine.jsonl", rows)
    for at, row in enumerate(rows):
        draw(folder / row["image"], at)


def _columns() -> list[dict[str, Any]]:
    rows = [{"question": f"a request {at}", "label": at, "image": None} for at in range(3)]
    for row in rows:
        row["label"] %= 2
    rows[1]["image"] = {"bytes": _bytes(1), "path": "a.png"}
    rows[2]["image"] = {"bytes": None, "path": "pictures/b.png"}
    return rows


def _parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (folder / "data").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(_columns()), folder / "data/train-00000-of-00001.parquet")
    draw(folder / "pictures/b.png", 2)


def _datasets(folder: Path) -> None:
    """As ``datasets`` saves it; the number of a class is its name's place."""
    import pyarrow as pa

    features = {"label": {"names": ["safe", "unsafe"], "_type": "ClassLabel"}}
    table = pa.Table.from_pylist(_columns())
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "test").mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / "test" / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    write_json(folder / "test/state.json", {"_data_files": [{"filename": name}]})
    write_json(folder / "dataset_dict.json", {"splits": ["test"]})
    draw(folder / "pictures/b.png", 2)


def _images(folder: Path) -> None:
    for at, name in enumerate(("harmful/weapons/1.png", "safe/2.jpg")):
        draw(folder / name, at)
    (folder / "harmful/notes.txt").write_text("words")


def _only(count: int, label: str, carrier: str) -> dict[str, Any]:
    return {"records": count, "labels": {label: count}, "carriers": {carrier: count}}


PUBLISHED: dict[str, Published] = {
    "mm-safetybench": Published(
        _mm_safetybench,
        "data/processed_questions/01-Illegal_Activitiy.json",
        16,
        {"harmful": 16},
        {"text": 4, "image": 4, "typographic": 8},
        picture="data/imgs/02-HateSpeech/SD/1.jpg",
        field="Rephrased Question",
    ),
    "figstep": Published(
        _figstep,
        "data/question/safebench.csv",
        **_only(2, "harmful", "typographic"),
        picture="data/images/SafeBench/query_ForbidQI_2_1_6.png",
        field="category_name",
        names="task_id",
    ),
    "jailbreakv-28k": Published(
        _jailbreakv,
        "JailBreakV_28K/JailBreakV_28K.csv",
        7,
        {"harmful": 7},
        {"text+image": 3, "typographic": 3, "image": 1},
        picture="JailBreakV_28K/figstep/SD_4.png",
        field="jailbreak_query",
        names="image_path",
    ),
    "vlguard": Published(
        _vlguard,
        "test.json",
        3,
        {"harmful": 2, "harmless": 1},
        {"text+image": 2, "image": 1},
        picture="test/privacy/u1.jpg",
        field="instr-resp",
        names="image",
    ),
    "harmbench": Published(
        _harmbench,
        "data/behavior_datasets/harmbench_behaviors_text_all.csv",
        **_only(2, "harmful", "text"),
        field="Behavior",
    ),
    "harmbench-multimodal": Published(
        _harmbench_multimodal,
        "data/behavior_datasets/harmbench_behaviors_multimodal_all.csv",
        **_only(2, "harmful", "text+image"),
        picture="data/multimodal_behavior_images/1.png",
        field="Behavior",
        names="ImageFileName",
    ),
    "xstest": Published(_xstest, "xstest_prompts.csv", 2, {"harmful": 1, "harmless": 1}, {"text": 2}, field="prompt"),
    "or-bench": Published(_or_bench, "or-bench-80k.csv", 3, {"harmful": 1, "harmless": 2}, {"text": 3}, field="prompt"),
    "mossbench": Published(
        _mossbench,
        "data/images_information/information.json",
        **_only(2, "harmless", "text+image"),
        picture="data/images/2.png",
        field="question",
        names="image",
    ),
    "siuo": Published(
        _siuo,
        "siuo_gen.json",
        **_only(2, "harmful", "text+image"),
        picture="images/S-01.png",
        field="question",
        names="image",
    ),
    "hateful-memes": Published(
        _hateful_memes,
        "dev_seen.jsonl",
        2,
        {"harmful": 1, "harmless": 1},
        {"image": 2},
        picture="img/01.png",
        field="label",
        names="img",
    ),
    "advbench": Published(
        _advbench, "data/advbench/harmful_behaviors.csv", **_only(2, "harmful", "text"), field="goal"
    ),
    "strongreject": Published(
        _strongreject,
        "strongreject_dataset/strongreject_dataset.csv",
        **_only(2, "harmful", "text"),
        field="forbidden_prompt",
    ),
    "malicious-instruct": Published(_malicious_instruct, "data/MaliciousInstruct.txt", **_only(2, "harmful", "text")),
    "mm-vet": Published(
        _mm_vet,
        "mm-vet.json",
        **_only(2, "harmless", "image"),
        picture="images/v1_1.png",
        field="question",
        names="imagename",
    ),
    "mme": Published(_mme, "color/2.txt", **_only(4, "harmless", "image"), picture="color/2.png"),
    "pope": Published(
        _pope,
        "output/coco/coco_pope_random.json",
        **_only(6, "harmless", "image"),
        picture="val2014/COCO_val2014_1.jpg",
        field="text",
        names="image",
    ),
    "scienceqa": Published(
        _scienceqa,
        "data/scienceqa/problems.json",
        2,
        {"harmless": 2},
        {"text": 1, "image": 1},
        picture="data/scienceqa/images/test/3/image.png",
        field="choices",
        names="image",
    ),
    "mmbench": Published(_mmbench, "MMBench_DEV_EN.tsv", **_only(2, "harmless", "image"), field="question"),
    "textvqa": Published(
        _textvqa,
        "TextVQA_0.5.1_val.json",
        **_only(2, "harmless", "image"),
        picture="train_images/01.jpg",
        field="question",
        names="image_id",
    ),
    "llava": Published(
        _llava,
        "mine.json",
        2,
        {"harmless": 2},
        {"text": 1, "image": 1},
        picture="coco/b.jpg",
        field="conversations",
        names="image",
    ),
    "json": Published(
        _json,
        "mine.jsonl",
        2,
        {"harmful": 1, "harmless": 1},
        {"image": 1, "typographic": 1},
        picture="b.webp",
        field="question",
        names="image",
    ),
    "parquet": Published(
        _parquet,
        "data/train-00000-of-00001.parquet",
        3,
        {"harmful": 1, "harmless": 2},
        {"text": 1, "image": 2},
        picture="pictures/b.png",
    ),
    "datasets": Published(
        _datasets,
        "test/data-00000-of-00001.arrow",
        3,
        {"harmful": 1, "harmless": 2},
        {"text": 1, "image": 2},
        picture="pictures/b.png",
    ),
    "images": Published(
        _images,
        "harmful/weapons/1.png",
        2,
        {"harmful": 1, "harmless": 1},
        {"image": 2},
        options=("prompt=What is this?",),
        picture="safe/2.jpg",
        pictures_only=True,
    ),
    "csv": Published(
        _csv,
        "mine.csv",
        3,
        {"harmful": 2, "harmless": 1},
        {"text": 1, "image": 2},
        picture="pictures/2#1.png",
        field="prompt",
        names="image",
    ),
}
