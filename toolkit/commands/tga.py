"""`safetykit fit tga`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AdapterOut, Json, Layers, Model, Overwrite


def fit(
    model: Model,
    data: Annotated[str, typer.Option("--data", help="Captioned pictures: a JSONL file, or `reference`.")],
    out: AdapterOut,
    variant: Annotated[str | None, typer.Option(help="projector, low-rank, lora or closed-form.")] = None,
    layers: Layers = None,
    channel_map: Annotated[Path | None, typer.Option("--map", help="Channel map to take the layers from.")] = None,
    guide_weight: Annotated[float | None, typer.Option(help="Of the picture's terms, per layer.")] = None,
    centred: Annotated[bool | None, typer.Option(help="Subtract means before the cosine.")] = None,
    request_weight: Annotated[float | None, typer.Option(help="Of the request's states after the picture.")] = None,
    opening_weight: Annotated[float | None, typer.Option(help="Of the first answer token.")] = None,
    shuffled: Annotated[float | None, typer.Option(help="Share of requests drawn from other pictures.")] = None,
    prefixed: Annotated[float | None, typer.Option(help="Share of rows with retrieved text as a prefix.")] = None,
    retrieval: Annotated[bool | None, typer.Option(help="Use the term with retrieved text.")] = None,
    index: Annotated[
        Path | None, typer.Option(help="Caption index to retrieve from; else the captions of the data.")
    ] = None,
    ce_weight: Annotated[float | None, typer.Option(help="Of the answers' cross-entropy.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows per pass.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Passes per optimizer step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    rank: Annotated[int | None, typer.Option(help="Of low-rank changes.")] = None,
    ridge: Annotated[float | None, typer.Option(help="λ of the closed form; else by cross-validation.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of rows and initial values.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from where an interrupted fit of the same settings was.")] = True,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """TGA: pictures aligned with their captions, without safety labels."""
    from ...adapters.artifact.files import require_free
    from ...adapters.errors import UsageError
    from ...adapters.tga.tga import TGA, Variant
    from ..alignment import Aligner
    from ..alignment.neighbours import FromIndex
    from ..data.captions import captions_path, load_captions
    from ..data.sources import model_path
    from ..model.vlm import VLM
    from ..retrieval.index import CaptionIndex
    from . import console, views
    from .fitting import parse_layers, require_choices

    if channel_map is not None and layers is not None:
        raise UsageError("--map and --layers both name the layers.", "Leave one out.")
    given = {
        "variant": variant,
        "layers": parse_layers(layers),
        "guide_weight": guide_weight,
        "centred": centred,
        "request_weight": request_weight,
        "opening_weight": opening_weight,
        "shuffled": shuffled,
        "prefixed": prefixed,
        "retrieval": retrieval,
        "ce_weight": ce_weight,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "lr": lr,
        "rank": rank,
        "ridge": ridge,
        "seed": seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    require_choices(given, {"variant": Variant})
    channels = None
    if channel_map is not None:
        from ..diagnosis.channel_map import ChannelMap

        channels = ChannelMap.load(channel_map)
        given["layers"] = channels.align_layers
    settings = TGA(**given)
    require_free(out, overwrite=overwrite)
    captions = load_captions(captions_path(data))
    vlm = VLM.from_pretrained(model_path(model))
    if channels is not None:
        channels.require_base(vlm.fingerprint, model)
    work = Path(out).parent / f".{out.name}.aligning"
    with console.progress_bar("aligning") as update:
        retriever = FromIndex(vlm, CaptionIndex.load(index)) if index is not None else None
        aligner = Aligner(vlm, captions, retriever, work=work, progress=update)
        if not resume:
            aligner.finish()
        adapter = settings.fit(aligner)
    adapter.save(out, overwrite=overwrite)
    aligner.finish()
    console.emit(
        {"adapter": str(out), **adapter.info.model_dump(mode="json"), "sweep": None},
        as_json=as_json,
        human=views.fit,
    )
