"""Data sets about safety, in small."""

from __future__ import annotations

from pathlib import Path

from publishing import Published, draw, only, write_json, write_lines, write_table


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


def _do_not_answer(folder: Path) -> None:
    rows = [
        {"id": at, "risk_area": "Malicious Uses", "types_of_harm": "a harm", "question": f"q {at}"} for at in range(2)
    ]
    write_table(folder / "datasets/Instruction/do_not_answer_en.csv", rows)


def _pyrit(folder: Path) -> None:
    write_seeds(folder / "datasets/seed_datasets/local/airt/illegal.prompt", "an objective", "another objective")


def write_seeds(path: Path, *values: str) -> None:
    """Seeds as PyRIT keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seeds = "".join(f"  - value: {value}\n    harm_categories:\n    - violence\n" for value in values)
    path.write_text(f"dataset_name: a_set\nharm_categories: illegal\ndata_type: text\nseeds:\n{seeds}")


SAFETY: dict[str, Published] = {
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
        **only(2, "harmful", "typographic"),
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
        **only(2, "harmful", "text"),
        field="Behavior",
    ),
    "harmbench-multimodal": Published(
        _harmbench_multimodal,
        "data/behavior_datasets/harmbench_behaviors_multimodal_all.csv",
        **only(2, "harmful", "text+image"),
        picture="data/multimodal_behavior_images/1.png",
        field="Behavior",
        names="ImageFileName",
    ),
    "xstest": Published(_xstest, "xstest_prompts.csv", 2, {"harmful": 1, "harmless": 1}, {"text": 2}, field="prompt"),
    "or-bench": Published(_or_bench, "or-bench-80k.csv", 3, {"harmful": 1, "harmless": 2}, {"text": 3}, field="prompt"),
    "mossbench": Published(
        _mossbench,
        "data/images_information/information.json",
        **only(2, "harmless", "text+image"),
        picture="data/images/2.png",
        field="question",
        names="image",
    ),
    "siuo": Published(
        _siuo,
        "siuo_gen.json",
        **only(2, "harmful", "text+image"),
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
    "advbench": Published(_advbench, "data/advbench/harmful_behaviors.csv", **only(2, "harmful", "text"), field="goal"),
    "strongreject": Published(
        _strongreject,
        "strongreject_dataset/strongreject_dataset.csv",
        **only(2, "harmful", "text"),
        field="forbidden_prompt",
    ),
    "do-not-answer": Published(
        _do_not_answer,
        "datasets/Instruction/do_not_answer_en.csv",
        **only(2, "harmful", "text"),
        field="question",
    ),
    "pyrit": Published(_pyrit, "datasets/seed_datasets/local/airt/illegal.prompt", **only(2, "harmful", "text")),
    "malicious-instruct": Published(_malicious_instruct, "data/MaliciousInstruct.txt", **only(2, "harmful", "text")),
}
