"""Sites, scopes and phases: one spelling for where and when an op acts, in PyTorch, ONNX and files.

=========================  ==========================================================
``decoder.layers.14``      output of decoder block 14 (the residual stream), from 0
``decoder.layers.14.attn`` attention output of block 14, before the residual add
``decoder.layers.14.mlp``  MLP output of block 14, before the residual add
``final_norm``             output of the decoder's last normalisation
``logits``                 output of the LM head
``vision``                 output of the vision tower that the projector reads
``projector``              image features in the decoder's embedding space
=========================  ==========================================================

``.attn`` and ``.mlp`` are what is added to the residual stream: behind the norm that ends a branch in Gemma 2 and 3.
A block's output is the stream before what may be added to it between blocks (features of pictures in Qwen3-VL).
``logits`` are those before a soft cap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import UsageError

Kind = Literal["block", "attn", "mlp", "final_norm", "logits", "vision", "projector"]

Scope = Literal["all", "vision", "text", "last"]  # which tokens
Phase = Literal["prefill", "decode", "both"]
Gating = Literal["per-token", "held", "once"]  # for how long a gate's decision stands; see gating.py

_LAYER = re.compile(r"decoder\.layers\.(0|[1-9]\d{0,4})(?:\.(attn|mlp))?")
_PLAIN = ("final_norm", "logits", "vision", "projector")
SPELLINGS = ("decoder.layers.N", "decoder.layers.N.attn", "decoder.layers.N.mlp", *_PLAIN)


@dataclass(frozen=True, order=True)
class Site:
    """A named tensor.

    Attributes:
        kind: which tensor.
        layer: decoder block, counted from 0; None outside the decoder blocks.
    """

    kind: Kind
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.layer is not None and self.layer < 0:
            raise UsageError(f"There is no decoder layer {self.layer}.", "Layers count from 0 at the first block.")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site as users spell it.

        Raises:
            UsageError: the spelling names no site.
        """
        if match := _LAYER.fullmatch(text):
            return cls(match[2] or "block", int(match[1]))  # type: ignore[arg-type]
        if text in _PLAIN:
            return cls(text)  # type: ignore[arg-type]
        raise UsageError(f"Unknown site {text!r}.", f"Sites are spelled {', '.join(SPELLINGS)}.")

    @classmethod
    def block(cls, layer: int) -> Site:
        """The output of decoder block ``layer`` (from 0)."""
        return cls("block", layer)

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        suffix = "" if self.kind == "block" else f".{self.kind}"
        return f"decoder.layers.{self.layer}{suffix}"

    def require_within(self, n_layers: int) -> None:
        """Refuse a layer the model does not have.

        Raises:
            UsageError: ``layer`` is not below ``n_layers``.
        """
        if self.layer is not None and self.layer >= n_layers:
            raise UsageError(
                f"Site {self} does not exist: the decoder has {n_layers} layers.",
                f"Layers count from 0, so the last one is {n_layers - 1}.",
            )


class _Placed(Protocol):
    @property
    def site(self) -> Kind: ...

    @property
    def layers(self) -> tuple[int, ...] | None: ...


def sites_of(settings: _Placed, depth: int) -> tuple[Site, ...]:
    """Where the settings of a method act in a decoder of ``depth`` blocks: the middle one, if they name none.

    Raises:
        UsageError: a layer does not exist.
    """
    layers = settings.layers if settings.layers is not None else (depth // 2,)
    sites = tuple(Site(settings.site, layer) for layer in sorted(set(layers)))
    for site in sites:
        site.require_within(depth)
    return sites
