"""`safetykit fit retrieval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AdapterOut, Json, Model, Overwrite, With


def fit(
    model: Model,
    index: Annotated[Path, typer.Option(help="Index folder, from `safetykit index build`.")],
    data: Annotated[str, typer.Option("--data", help="Captioned pictures: JSONL, or `reference`.")],
    out: AdapterOut,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="Texts per picture.")] = 3,
    correction: Annotated[
        float | None, typer.Option(help="γ: share of the way image tokens move towards the texts.")
    ] = None,
    prefix: Annotated[bool, typer.Option("--prefix", help="Put the retrieved texts before the prompt.")] = False,
    external_index: Annotated[
        bool, typer.Option("--external-index", help="Keep the index out of the graph; the runtime searches it.")
    ] = False,
    in_graph_limit: Annotated[int | None, typer.Option(min=1, help="Most texts that are put into a graph.")] = None,
    encoder: Annotated[Path | None, typer.Option(help="The index's encoder, for captions it lacks.")] = None,
    corrected_by: With = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """TGA's retrieval: the query that finds a picture's caption, with the index in the graph or beside it."""
    from ...adapters.artifact.files import require_free
    from ...adapters.artifact.sites import Site
    from ...adapters.artifact.store import load_adapter
    from ..data.captions import captions_path, load_captions
    from ..data.sources import model_path
    from ..model.vlm import VLM
    from ..retrieval.embedders import EncoderEmbedder, VLMEmbedder
    from ..retrieval.fit import IN_GRAPH_LIMIT, fit_retrieval
    from ..retrieval.index import CaptionIndex
    from . import console

    require_free(out, overwrite=overwrite)
    pictures = load_captions(captions_path(data))
    opened = CaptionIndex.load(index)
    correctors = [load_adapter(folder) for folder in corrected_by or []]
    vlm = VLM.from_pretrained(model_path(model))
    embedder = EncoderEmbedder(encoder) if encoder else None
    if embedder is None and opened.manifest.embedder.sha256 == vlm.fingerprint:
        embedder = VLMEmbedder(vlm, Site.parse(str(opened.manifest.embedder.site)))
    with console.progress_bar("looking at pictures") as update, vlm.applied(*correctors):
        adapter = fit_retrieval(
            vlm,
            opened,
            pictures,
            k=k,
            correction=correction,
            prefix=prefix,
            external=external_index,
            embedder=embedder,
            in_graph_limit=in_graph_limit or IN_GRAPH_LIMIT,
            progress=update,
        )
    adapter.save(out, overwrite=overwrite)
    value = {
        "adapter": str(out),
        **adapter.info.model_dump(mode="json"),
        "accuracy": adapter.attachments["retrieval_accuracy"],
    }
    console.emit(value, as_json=as_json, human=_show)


def _show(console: Any, value: dict[str, Any]) -> None:
    console.print(f"{value['method']} ({value['variant']}) → {value['adapter']}", markup=False)
    found = value["accuracy"]
    for name in ("unseen_picture", "unseen_caption"):
        if rate := found[name]:
            console.print(
                f"{name.replace('_', ' ')}: own caption first {100 * rate['top1'] / rate['n']:.0f} %, among five "
                f"{100 * rate['top5'] / rate['n']:.0f} % of {rate['n']} pictures, out of {found['among']} texts"
            )
