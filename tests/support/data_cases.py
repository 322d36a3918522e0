"""Every option of `safetykit data` in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

import json

from case import Case

FORMS = ("typographic", "scene", "text+image", "blank", "noise", "photo")
SIGNS = {"en": "sign", "de": "Schild", "fr": "panneau", "es": "letrero", "it": "cartello", "pt": "placa"}

DATA = [
    Case(
        "data import figstep {figstep} -o {out} --split calibration --limit 1 --images {drawn_steps} --json",
        lambda done, made: done.value["counts"] == {"calibration/typographic/harmful": 1},
    ),
    Case(
        "data import auto {figstep} -o {taken} --split fit --overwrite --json",
        lambda done, made: [done.value["importer"] == "figstep", (done.path / "records.jsonl").is_file()],
    ),
    Case(
        "data import csv {table} -o {out} --column prompt=asked --column image=shown --label harmful --category things"
        " --split test --skip-bad-rows --json",
        lambda done, made: [
            done.value["counts"] == {"test/text/harmful": 1},
            done.value["left_out"] == 1,
            '"category":"things"' in (done.path / "records.jsonl").read_text(),
        ],
    ),
    Case(
        "data import csv {table} -o {out} --prompt 'what is this ?' --label harmless --json",
        lambda done, made: done.value["counts"] == {"test/text/harmless": 2},
    ),
    Case("data check {records} --json", lambda done, made: not done.value["faults"]),
    Case(
        "data split {begun} -o {taken} --by group --shares 50,25,25 --seed 3 --overwrite --json",
        lambda done, made: [done.value["seed"] == 3, sum(done.value["counts"].values()) == 24],
    ),
    *(
        Case(f"data split {{begun}} -o {{out}} --by {by} --shares 100,0,0 --json", lambda done, made: done.value["by"])
        for by in ("category", "pair")
    ),
    Case("data show {begun} -o {out} --limit 5 --json", lambda done, made: done.value["shown"] == 5),
    Case("data show {begun} -o {drawn_sheet} --overwrite --json", lambda done, made: done.value["shown"] == 24),
    Case(
        "data starter -o {taken} --records 100 --packages none --side 224 --seed 3 --by group --overwrite --json",
        lambda done, made: [
            done.value["count"] == 96 and not done.value["packages"],
            '"blank"' in (done.path / "records.jsonl").read_text(),
            '"seed":3' in (done.path / "source.json").read_text().replace(" ", ""),
        ],
    ),
    Case(
        "data starter -o {out} --records 96 --packages none --side 224 --by category --json",
        lambda done, made: _in_one_split_each("category", done),
    ),
    Case("data init {taken} --overwrite --json", lambda done, made: done.value["count"] == 24),
    Case(
        f"data carriers {{begun}} -o {{taken}} {' '.join(f'--form {form}' for form in FORMS)} --font {{font}} --photos"
        " {drawn_steps} --side 320 --seed 3 --drawn-only --overwrite --json",
        lambda done, made: done.value["drawn"] == dict.fromkeys(FORMS, 12) and '"image' in _lines(done)[0],
    ),
    *(
        Case(
            f"data carriers {{begun}} -o {{out}} --form scene --language {language} --json",
            lambda done, made, word=word: word in json.loads(_lines(done)[-1])["prompt"],
        )
        for language, word in SIGNS.items()
    ),
]


def _lines(done):
    return (done.path / "records.jsonl").read_text().splitlines()


def _in_one_split_each(field, done):
    """Whether no value of a field is in two splits."""
    splits: dict[str, set[str]] = {}
    for one in map(json.loads, _lines(done)):
        splits.setdefault(one[field], set()).add(one["split"])
    return len(splits) > 3 and all(len(found) == 1 for found in splits.values())
