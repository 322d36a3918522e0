"""Every option of the fits on captioned pictures in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

from case import Case
from fit_checks import SPREAD, chosen, ran

TGA = "fit tga {model} --data {captions} -o {out} --json"
RETRIEVAL = "fit retrieval {model} --data {captions} --index {index} -o {out} --json"

ALIGNMENTS = [
    # TGA and retrieval
    Case(
        f"{TGA} --variant lora --layers 4 --guide-weight 0.2 --request-weight 0.4"
        " --opening-weight 0.5 --ce-weight 1 --shuffled 0.25 "
        "--steps 2 --batch-size 4 --accumulate 2 --lr 0.0005 --rank 2 --seed 5 --no-resume",
        chosen(
            variant="lora",
            layers=[4],
            guide_weight=0.2,
            request_weight=0.4,
            opening_weight=0.5,
            ce_weight=1,
            shuffled=0.25,
            steps=2,
            batch_size=4,
            accumulate=2,
            lr=0.0005,
            rank=2,
            seed=5,
        ),
    ),
    Case(
        f"{TGA} --variant projector --budget 3.6 --batch-size 4 --no-centred --no-retrieval --resume",
        chosen(variant="projector", centred=False, retrieval=False, budget=3.6, steps=1),
    ),
    Case(
        f"{TGA} --variant low-rank --steps 1 --batch-size 4 --centred --retrieval --prefixed 0.5 --index {{index}}",
        chosen(variant="low-rank", centred=True, retrieval=True, prefixed=0.5),
    ),
    Case(
        f"{TGA} --variant closed-form --ridge 0.5 --device cpu --dtype float32",
        lambda done, made: [chosen(variant="closed-form", ridge=0.5)(done, made) is None, ran()(done, made)],
    ),
    Case(f"{TGA} --variant closed-form {SPREAD}", ran()),
    Case(f"{TGA} --map {{map}} --steps 1 --batch-size 4", lambda done, made: done.value["hyperparameters"]["layers"]),
    Case(
        "fit tga {model} --data {captions} -o {taken} --variant closed-form --overwrite --json",
        chosen(variant="closed-form"),
    ),
    Case(f"{RETRIEVAL} -k 2 --correction 0.5 --in-graph-limit 1000", chosen(k=2, correction=0.5, in_graph_limit=1000)),
    Case(
        f"{RETRIEVAL} --k 2 --prefix --external-index",
        lambda done, made: done.value["variant"] == "external" and chosen(k=2, prefix=True)(done, made) is None,
    ),
    Case(f"{RETRIEVAL} --device cpu --dtype bfloat16 --batch-size 8", ran("bfloat16")),
    Case(f"{RETRIEVAL} {SPREAD}", ran()),
    Case(f"{RETRIEVAL} --with {{guard}}", lambda done, made: done.value["hyperparameters"]["corrected_by"]),
    Case(
        "fit retrieval {model} --data {captions} --index {encoded_index}"
        " --encoder {encoder} -o {taken} --overwrite --json",
        lambda done, made: done.value["method"],
    ),
]
