"""Text embedders: the model's own decoder, or a text encoder from a folder on disk. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...adapters.artifact.files import sha256_file
from ...adapters.artifact.hub import located, name_of
from ...adapters.artifact.sites import Site
from ...adapters.errors import InvalidArtifact, UsageError
from ..index.embedding import EmbedderInfo
from ..model.batching import fitting
from ..model.capture import Reached
from ..model.completeness import CHECKED, require_complete
from ..model.outputs import hidden_of
from ..model.pretrained import model_of, tokenizer_of
from ..model.reasons import reason_of

if TYPE_CHECKING:
    from ..model.vlm import VLM

_UNUSED = ("pooler.",)  # states are pooled here
_SUFFIXES = (".json", ".txt", ".safetensors", ".model", ".jinja")


class VLMEmbedder:
    """A text's mean state, over its own tokens, at one site of the decoder; no chat template, no picture.

    Attributes:
        info, dimension, centred: see ``embedding.Embedder``.
    """

    centred = True

    def __init__(self, vlm: VLM, site: Site | None = None) -> None:
        """``site`` is a decoder site; by default a block's output at three quarters of the depth, where
        retrieval was best on the reference VLM (blocks from the middle on differ little).

        Raises:
            UsageError: the model has no such site, or its states are no text's.
        """
        self.site = site or Site.block(max(3 * len(vlm.parts.layers) // 4 - 1, 0))
        require_text_site(self.site, len(vlm.parts.layers))
        self._vlm, self._module = vlm, vlm.parts.module(self.site)
        self.dimension: int = vlm.base.d_model
        ran = str(vlm.dtype).removeprefix("torch.")
        self.info = EmbedderInfo(kind="vlm", name=vlm.path.name, sha256=vlm.fingerprint, site=str(self.site), ran=ran)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "batch dimension"]:
        """Mean states in float32."""
        parts = fitting(texts, self._vlm.batch_size, len(texts), self._embed)
        return np.concatenate([found for _, found in parts])

    def _embed(self, texts: Sequence[str]) -> Float[np.ndarray, "batch dimension"]:
        ids, mask = token_ids(self._vlm.inputs.tokenizer, texts)
        seen: list[Tensor] = []

        def read(module: Any, args: Any, output: Any) -> None:
            seen.append(hidden_of(output))
            raise Reached

        handle = self._module.register_forward_hook(read)
        device = self._vlm.device
        try:
            self._vlm.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        except Reached:
            pass
        finally:
            handle.remove()
        return _pooled(seen[0], mask.to(seen[0].device))


def require_text_site(site: Site, n_layers: int | None) -> None:
    """Refuse a site at which texts have no states of their own.

    Args:
        n_layers: of the decoder; None where it is not known.

    Raises:
        UsageError: it is no decoder site, or the decoder has no such layer.
    """
    if site.kind in ("vision", "projector", "logits"):
        raise UsageError(f"Texts cannot be embedded at {site}.", "Use one such as decoder.layers.4.")
    if n_layers is not None:
        site.require_within(n_layers)


class EncoderEmbedder:
    """A text encoder in a folder: a CLIP checkpoint (its text tower and projection), or sentence-transformers.

    Attributes:
        info, dimension, centred: see ``embedding.Embedder``; these encoders are trained for angles about the origin.
    """

    centred = False

    def __init__(self, folder: Path | str) -> None:
        """Load the encoder.

        Raises:
            UsageError: there is no such folder, it is no encoder, or its layout is not known here.
            InvalidArtifact: one of its files is damaged.
        """
        folder = located(folder)
        if not folder.is_dir():
            raise UsageError(f"There is no encoder folder at {folder}.", "Pass the path of a checkpoint on disk.")
        if (folder / "modules.json").is_file():
            kind, (self._encode, self.dimension, pooling) = "sentence-transformers", _sentence_transformer(folder)
        else:
            kind, (self._encode, self.dimension, pooling) = "clip", _clip(folder)
        self.info = EmbedderInfo(kind=kind, name=name_of(folder), sha256=_folder_digest(folder), pooling=pooling)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Float[np.ndarray, "batch dimension"]:
        """Text embeddings in float32."""
        return self._encode(texts)


_Encoder = tuple[Callable[[Sequence[str]], np.ndarray], int, str]


def _clip(folder: Path) -> _Encoder:
    from transformers import CLIPTextModelWithProjection

    config = _config(folder)
    if config.get("model_type") not in ("clip", "clip_text_model"):
        raise UsageError(
            f"{folder} is neither a CLIP checkpoint nor a sentence-transformers folder (no modules.json).",
            "Pass one of these, or --model for the vision-language model's own embeddings.",
        )
    model, tokenizer = _load(CLIPTextModelWithProjection, folder)
    limit = model.config.max_position_embeddings

    def encode(texts: Sequence[str]) -> np.ndarray:
        ids, mask = token_ids(tokenizer, texts, limit)
        return model(input_ids=ids, attention_mask=mask).text_embeds.float().numpy()

    return encode, model.config.projection_dim, "projection"


def _sentence_transformer(folder: Path) -> _Encoder:
    """A transformer with mean or CLS pooling, perhaps normalised: the layout's usual modules."""
    from transformers import AutoModel

    modules = _json(folder / "modules.json")
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UsageError(
            f"{folder} chains {', '.join(kinds)}.", "Transformer, Pooling and Normalize are known; use such an encoder."
        )
    inner, pool = (folder / _inside(module) for module in modules[:2])
    settings = _json(pool / "config.json")
    chosen = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]
    pooling = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}.get(chosen[0] if chosen else "")
    if len(chosen) != 1 or pooling is None:
        raise UsageError(f"{pool} pools by {', '.join(chosen) or 'nothing'}.", "Mean and CLS pooling are known.")
    model, tokenizer = _load(AutoModel, inner)
    limits = (folder / "sentence_bert_config.json", inner / "sentence_bert_config.json")
    limit = next((_json(path).get("max_seq_length") for path in limits if path.is_file()), None)

    def encode(texts: Sequence[str]) -> np.ndarray:
        ids, mask = token_ids(tokenizer, texts, limit or model.config.max_position_embeddings)
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states[:, 0].float().numpy() if pooling == "cls" else _pooled(states, mask)

    return encode, model.config.hidden_size, pooling


def _load(kind: Any, folder: Path) -> tuple[Any, Any]:
    try:
        model, said = model_of(kind, folder, dtype=torch.float32, **CHECKED)
        tokenizer = tokenizer_of(folder)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UsageError(
            f"{folder} cannot be loaded as a text encoder: {reason_of(error)}",
            "It needs safetensors weights and a tokenizer.",
        ) from None
    require_complete(folder, said, unused=_UNUSED)
    return model.eval(), tokenizer


def token_ids(
    tokenizer: Any, texts: Sequence[str], limit: int | None = None
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Token ids and mask; texts longer than ``limit`` are cut. Padding on the right moves no position."""
    cut = {"truncation": True, "max_length": limit} if limit else {}
    found = tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt", **cut)
    return found["input_ids"], found["attention_mask"]


def _pooled(states: Float[Tensor, "batch seq d"], mask: Int[Tensor, "batch seq"]) -> Float[np.ndarray, "batch d"]:
    weights = mask.float() / mask.sum(1, keepdim=True).clamp_min(1)
    return (states.float() * weights[..., None]).sum(1).cpu().numpy()


def _inside(module: dict[str, Any]) -> str:
    path = str(module.get("path", ""))
    if path.startswith(("/", "\\")) or ".." in Path(path).parts:
        raise InvalidArtifact(f"modules.json names {path!r}, outside its folder.", "Get the encoder from its source.")
    return path


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UsageError(f"{folder} has no config.json.", "Pass a CLIP checkpoint or a sentence-transformers folder.")
    return _json(path)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidArtifact(f"{path} cannot be read ({type(error).__name__}).", "Get the encoder again.") from None


def _folder_digest(folder: Path) -> str:
    """Over names and bytes of everything that decides its embeddings."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in _SUFFIXES:
            digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()
