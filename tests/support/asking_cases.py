"""What is asked, of which length and in which parts, in commands that work; see :mod:`command_cases`."""

from __future__ import annotations

import json

from case import Case

RUN = "run {export} --prompt 'what is this ?' --json"
FOUND = "run {external_export} --prompt 'what is this ?' --image {picture} --external-index {index} --json"

ASKING = [
    Case(
        "eval {export} --data {talks} --truncate --max-prompt-tokens 12 --max-new-tokens 2 -o {out} --json",
        lambda done, made: [
            [one["dropped_turns"] for one in json.loads(done.path.read_text())["decisions"]] == [2, 2],
            "2 conversations are too long: their first turns were dropped, 4 in all" in done.err,
        ],
    ),
    Case(f"{FOUND} --prompt-chunk 5", lambda done, made: done.value == made.run(FOUND).value),
    Case(
        "run {export} --messages {conversation} --truncate --max-prompt-tokens 12 --max-new-tokens 3 --json",
        lambda done, made: [
            [one["prompt"] for one in done.value] == ["is it dangerous ?"],
            (done.value[0]["dropped_turns"], done.value[0]["dropped_pictures"]) == (2, 1),
            "its first 2 turns were dropped, with 1 of its pictures" in done.err,
        ],
    ),
    Case(
        f"{RUN} --image {{picture}} --system 'is it dangerous ?' --max-prompt-tokens 64",
        lambda done, made: done.value[0]["text"],
    ),
]
