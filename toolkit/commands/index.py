"""`safetykit index build` and `safetykit index search`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from ..distributed.job import sharing
from ..index.types import KeyType
from ..model.options import LoadOptions, PlaceOptions
from .common import reads_artifacts
from .derived import takes
from .options import Json, Overwrite, one_of

if TYPE_CHECKING:
    from ..index.embedding import Embedder

index = typer.Typer(no_args_is_help=True)

ModelName = Annotated[str | None, typer.Option("--model", help="Model whose decoder embeds the texts.")]
Encoder = Annotated[Path | None, typer.Option(help="Text encoder: CLIP or sentence-transformers folder.")]
SiteName = Annotated[str | None, typer.Option("--site", help="Decoder site of --model, such as decoder.layers.5.")]


@index.command(epilog="Example: safetykit index build captions.jsonl --model ./my-vlm -o index")
@sharing
@takes(LoadOptions)
def build(
    captions: Annotated[
        str, typer.Argument(help="JSONL, Parquet, a folder of pictures with captions, or `reference`.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Index folder to write.")],
    options: LoadOptions,
    model: ModelName = None,
    encoder: Encoder = None,
    site: SiteName = None,
    keys: Annotated[str, one_of(KeyType, "Type of the stored keys.")] = "float32",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Embed texts.

    An interrupted build goes on where it stopped when it is asked for again.
    """
    from ...adapters.artifact.held import beside
    from ...adapters.artifact.names import located
    from ...adapters.artifact.output import claimed
    from ...adapters.settings import require_choice
    from ..distributed.output import by_first
    from ..retrieval.build import BATCH, BUILDING, build_index
    from ..retrieval.sources import open_texts
    from . import console

    require_choice("--keys", keys, get_args(KeyType))
    claim = claimed(out, overwrite=overwrite, inputs=[captions, model, encoder], spent=[beside(located(out), BUILDING)])
    with by_first(claim):
        texts = open_texts(captions)
        make_embedder = embedder_of(model, encoder, site, options)
        with console.work("loading") as doing:
            embedder = make_embedder()
            doing("embedding")
            made = build_index(
                texts,
                embedder,
                out,
                batch_size=options.rows or BATCH,
                dtype=keys,  # type: ignore[arg-type]
                overwrite=overwrite,
                progress=doing.count,
            )
    value = {"index": str(out), **made.manifest.model_dump(mode="json")}
    fitted_on = model or "MODEL"
    then = console.command_line("fit", "retrieval", fitted_on, "--index", out, "--data", "CAPTIONS", "-o", "retrieval")
    console.emit(value, as_json=as_json, human=_show, then=then)


@index.command(epilog='Example: safetykit index search index --model ./my-vlm --text "a red apple"')
@reads_artifacts
@takes(PlaceOptions)
def search(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Index folder.")],
    options: PlaceOptions,
    text: Annotated[str | None, typer.Option(help="Find texts near this one.")] = None,
    image: Annotated[str | None, typer.Option(help="Find texts for this picture.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Retrieval adapter fitted on this index; for --image.")] = None,
    model: ModelName = None,
    encoder: Encoder = None,
    k: Annotated[int, typer.Option("-k", "--top", min=1, help="How many texts.")] = 5,
    as_json: Json = False,
) -> None:
    """Search by a text or a picture.

    A picture is searched for as a fitted retrieval adapter does.
    """
    from ...adapters.errors import UsageError
    from ..data.sources import model_path
    from ..index.caption_index import CaptionIndex
    from ..model.shape import decoder_shape
    from . import console

    if (text is None) == (image is None):
        raise UsageError("One thing is searched for at a time.", "Pass --text or --image.")
    idle, needed = ("adapter", "image") if text is not None else ("encoder", "text")
    if {"adapter": adapter, "encoder": encoder}[idle] is not None:
        other = "text" if needed == "image" else "image"
        raise UsageError(f"--{idle} does nothing with --{other}.", f"Leave it out; it acts with --{needed}.")
    opened = CaptionIndex.load(folder)
    if text is not None:
        if (model is None) != (encoder is None):
            shape = decoder_shape(model_path(model)) if model else None
            opened.require_maker(str(model or encoder), vlm=bool(model), dimension=shape and shape.d_model)
        make_embedder = embedder_of(model, encoder, opened.manifest.embedder.site if model else None, options)
    else:
        make_query = _picture_query(opened, str(image), adapter, model, options)
    with console.steps("searching"):
        query = opened.embed(make_embedder(), [text]) if text is not None else make_query()
        ids, scores = opened.search(query, min(k, len(opened)))
    ranked = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
    found = [{"id": at, "score": score, "text": opened[at]} for at, score in ranked]
    console.emit(found, as_json=as_json, human=_show_found)


def embedder_of(
    model: str | None, encoder: Path | None, site: str | None, options: PlaceOptions
) -> Callable[[], Embedder]:
    """What loads the embedder that the options name.

    Raises:
        UsageError: none or two of them.
    """
    from ...adapters.artifact.sites import Site
    from ...adapters.errors import UsageError
    from ..data.sources import model_path
    from ..model.shape import decoder_shape
    from ..model.vlm import VLM
    from ..retrieval.embedders import EncoderEmbedder, VLMEmbedder, require_text_site

    if (model is None) == (encoder is None):
        raise UsageError("One embedder makes an index.", "Pass --model or --encoder.")
    if encoder is not None:
        if site is not None:
            raise UsageError("An encoder has no decoder sites.", "Leave out --site, or pass --model.")
        options.require_model(False, "an encoder")
        return partial(EncoderEmbedder, encoder)
    path, at = model_path(str(model)), Site.parse(site) if site else None
    if at is not None:
        shape = decoder_shape(path)
        require_text_site(at, shape and shape.n_layers)
    return lambda: VLMEmbedder(VLM.from_pretrained(path, **options.loading()), at)


def _picture_query(
    opened: Any, image: str, adapter: Path | None, model: str | None, options: PlaceOptions
) -> Callable[[], Any]:
    from ...adapters.artifact.store import load_adapter
    from ...adapters.errors import UsageError
    from ...adapters.retrieval.retrieval import retrieval_of
    from ..data.pictures import open_picture
    from ..data.sources import model_path
    from ..model.shape import decoder_shape, require_adaptable
    from ..model.vlm import VLM
    from ..retrieval.fit import picture_query_of

    if adapter is None or model is None:
        raise UsageError(
            "A picture is searched for with its model and a fitted query.",
            "Pass --model and --adapter (from `safetykit fit retrieval`).",
        )
    loaded = load_adapter(adapter)
    found = retrieval_of([loaded])
    if found is None or found[0].index != opened.digest:
        raise UsageError(f"The adapter in {adapter} was not fitted on this index.", "Fit it on this index.")
    path, picture = model_path(model), open_picture(image)
    require_adaptable([loaded], decoder_shape(path), model, allow_wrong_base=None)
    return lambda: picture_query_of(VLM.from_pretrained(path, **options.loading()), loaded, picture)


def _show(console: Any, value: dict[str, Any]) -> None:
    embedder = value["embedder"]
    console.print(
        f"{value['count']} texts ({value['duplicates']} repeated ones dropped), keys of width {value['dimension']} "
        f"({value['dtype']}) by {embedder['name']} ({embedder['kind']}) → {value['index']}",
        markup=False,
    )


def _show_found(console: Any, value: list[dict[str, Any]]) -> None:
    for item in value:
        console.print(f"{item['score']:.3f}  {item['text']}", markup=False, soft_wrap=True)
