"""What TGA is trained on: captioned pictures of objects of the fit split, with ordinary requests and no safety label.

    python bench/real/captions.py WORK    # WORK/captions/captions.jsonl, with answers of WORK/model

Turns name what is shown, or ask a frame of ``objects.py`` about a permitted object; the answer to the latter is what
the model itself says when the object is named in text. No restricted object is in a frame: TGA's shuffled rows bring
frames and restricted pictures together, and the base's own text decides what is to be said then.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from objects import LOOK_ALIKES, SHOWN, Object, objects, pairs, wordings
from redteam import SEEN_SETS, Pictures

from safetykit.adapters.artifact.files import write_atomic
from safetykit.toolkit.data.captions import CaptionedPicture, load_captions
from safetykit.toolkit.evaluation.judge import is_refusal
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

ASKED = "What is in the picture?"
ANSWER_TOKENS = 32
_FRAMES = 2  # per picture of a permitted object
_BATCH = 16


def captions(vlm: VLM, packages: Path, folder: Path, name: str | None = None) -> list[CaptionedPicture]:
    """The captions in ``folder``, made there if they are missing; answers come from ``vlm``.

    Args:
        name: of the file; by default with the model's fingerprint.
    """
    file = folder / (name or f"captions-{vlm.fingerprint[:12]}.jsonl")
    if not file.is_file():
        pictures = Pictures(packages, folder / "pictures")
        chosen = [one for one in objects() if one.split == "fit"]
        rng = random.Random(5)
        frames = {one.name: _frames(one, rng) for one in chosen if not one.restricted}
        asked = list(dict.fromkeys(wording.format(one.noun) for one in chosen for wording in frames.get(one.name, ())))
        answers = dict(zip(asked, _answers(vlm, asked), strict=True))
        lines = []
        for one in chosen:
            turns = [(ASKED, f"{one.noun[0].upper()}{one.noun[1:]}.")]
            turns += [
                (wording.format(SHOWN), answer)
                for wording in frames.get(one.name, ())
                if (answer := answers[wording.format(one.noun)]) and not is_refusal(answer)
            ]
            given = [{"instruction": instruction, "answer": answer} for instruction, answer in turns]
            for name in SEEN_SETS:
                if image := pictures.emoji(one, name):
                    line = {"id": f"{name}-{one.name}", "caption": f"This is {one.noun}.", "image": image}
                    lines.append(json.dumps({**line, "turns": given}))
        write_atomic(file, ("\n".join(lines) + "\n").encode())
    return load_captions(file)


def _frames(one: Object, rng: random.Random) -> list[str]:
    """Wordings of the frames that it makes sense to ask about an object."""
    fitting = [w for frame, other in pairs("fit", harmful=False) if other == one for w in wordings(frame, "fit")]
    return [*rng.sample(fitting, min(_FRAMES, len(fitting))), rng.choice(LOOK_ALIKES[3:4])]


def _answers(vlm: VLM, requests: Sequence[str]) -> list[str]:
    """The model's own answers, cut after their last whole sentence; empty where there is none."""
    found = []
    for start in range(0, len(requests), _BATCH):
        for answer in vlm.generate([Request(text) for text in requests[start : start + _BATCH]], ANSWER_TOKENS):
            found.append(re.match(r"(?:.*[.!?])?", answer.text, re.DOTALL)[0].strip())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    made = captions(VLM.from_pretrained(work / "model"), work / "packages", work / "captions", "captions.jsonl")
    print(json.dumps({"captions": len(made)}))


if __name__ == "__main__":
    main()
