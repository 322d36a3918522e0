"""Data sets about utility, in small."""

from __future__ import annotations

import base64
from pathlib import Path

from publishing import Published, draw, drawn_bytes, only, write_json, write_lines, write_table


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
                "image": base64.b64encode(drawn_bytes(5)).decode(),
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


UTILITY: dict[str, Published] = {
    "mm-vet": Published(
        _mm_vet,
        "mm-vet.json",
        **only(2, "harmless", "image"),
        picture="images/v1_1.png",
        field="question",
        names="imagename",
    ),
    "mme": Published(_mme, "color/2.txt", **only(4, "harmless", "image"), picture="color/2.png"),
    "pope": Published(
        _pope,
        "output/coco/coco_pope_random.json",
        **only(6, "harmless", "image"),
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
    "mmbench": Published(_mmbench, "MMBench_DEV_EN.tsv", **only(2, "harmless", "image"), field="question"),
    "textvqa": Published(
        _textvqa,
        "TextVQA_0.5.1_val.json",
        **only(2, "harmless", "image"),
        picture="train_images/01.jpg",
        field="question",
        names="image_id",
    ),
}
