"""Retrieval at run time: the texts in an export folder, by the ids that its vision encoder gives; needs no torch.

The vision encoder gives ``retrieved_ids`` and ``retrieved_scores`` [images, k], or for an index outside the graph
``retrieval_query`` [images, d_key].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...adapters.artifact.files import read_inside, write_atomic
from ...adapters.artifact.manifest import RetrievalInfo
from ...adapters.errors import InvalidArtifact, UsageError
from ...toolkit.index.caption_index import CaptionIndex
from ...toolkit.model.retriever import Retriever
from ..manifest import LAYOUT


def write_captions(folder: Path, texts: Sequence[str]) -> None:
    """Put the texts of an index that is in the graph into the export folder, an object ``{"caption": …}`` a line."""
    lines = (json.dumps({"caption": text}, ensure_ascii=False) + "\n" for text in texts)
    write_atomic(folder / LAYOUT.captions, "".join(lines).encode())


def open_retriever(
    folder: Path, info: RetrievalInfo | None, index: CaptionIndex | Path | None = None
) -> Retriever | None:
    """What an export folder retrieves with.

    Args:
        index: the external index or its folder, for an export that needs one.

    Raises:
        UsageError: the index is missing, is another one, or nothing asks for it.
        InvalidArtifact: the texts in the folder are missing or damaged.
    """
    if info is None:
        if index is not None:
            raise UsageError(f"{folder} retrieves nothing.", "Leave out --external-index.")
        return None
    opened = CaptionIndex.load(index) if isinstance(index, Path) else index
    return Retriever(info, () if info.external else _read_captions(folder, info.count), opened)


def _read_captions(folder: Path, count: int) -> list[str]:
    path = folder / LAYOUT.captions
    try:
        texts = [json.loads(line)["caption"] for line in read_inside(folder, LAYOUT.captions).splitlines()]
    except (ValueError, KeyError, TypeError):
        raise InvalidArtifact(f"{path} does not hold one caption a line.", "Export the model again.") from None
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise InvalidArtifact(f"{path} does not hold {count} captions.", "Export the model again.")
    return texts
