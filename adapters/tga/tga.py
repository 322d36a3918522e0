"""TGA (Xu et al., "Cross-Modal Safety Mechanism Transfer in Large Vision-Language Models", ICLR 2025,
arXiv:2410.12662): text-guided alignment.

Vision–language alignment does not carry the safety mechanism of text to pictures, because the hidden states of image
tokens do not lie where the same meaning in text lies. So the projection of pictures into the language model is
trained once more, guided by text: captions, and texts retrieved for the picture. No picture has a safety label.

Loss (per aligned layer j; mean-pooled states of image tokens I_j, caption C_j, retrieved text R_j) [paper]::

    L = Σ_j [ −cos(I_j, C_j) + log(1 + exp(−(cos(I_j, C_j) − cos(R_j, C_j)))) ]
        + CE(answer | "Retrieved Text: …", image, instruction)

What is trained, as weight updates that add no op: ``projector`` as a whole [paper]; ``low-rank`` changes of it;
``lora``, low-rank changes of projector and decoder; ``closed-form``, no training but an affine map after the
projector's last linear layer, by ridge regression onto the captions (toolkit.alignment.closed_form) [ours].

Ours, because the mean-pooled cosine leaves open what the decoder *reads* from the picture, and unrelated captions
have a cosine of 0.9 to begin with:

    ``centred``   subtracts each side's mean before the cosine
    ``request``   the states of the request's tokens after the picture follow those of the base after the caption,
                  token by token
    ``opening``   so does the distribution of the answer's first token (KL): what text safety does after a caption is
                  learnt for the picture
    ``shuffled``  a share of the requests is drawn from other pictures of the data, so that by chance a request meets a
                  picture that makes it a restricted one. Nobody labels or answers it: the base's own text decides.

The paper's loss alone is ``centred`` off, these weights and ``shuffled`` 0, ``guide_weight`` and ``prefixed`` 1.

Deviations: the layers are the paper's (where refusal rises, ``toolkit.diagnosis.lens``) if a channel map is given, else
all from a quarter of the depth on; one learning rate with warm-up and decay, where the released code has two stages
(1e-3, 2e-6); the retrieved text stands before a share ``prefixed`` of the requests, none by default, since a runtime
may answer without retrieval; a text equal to the picture's own caption is not retrieved for it, since the bar
cos(R_j, C_j) would then be 1 for any picture.

The defaults were chosen on the reference VLM ``mild``, calibration split. There, trained on 133 of 302 things, a whole
projector soon forgets the things it is not shown, and the paper's loss alone hardly makes pictures refused. The request
and the opening do the work, low-rank changes of the decoder keep the answers, and the picture's guide adds nothing
measurable beside them (bench/tga.py); its weight is small for that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol, get_args

from pydantic import JsonValue

from ..artifact.adapter import Adapter
from ..artifact.manifest import AdapterInfo, BaseInfo, DataInfo, library_versions
from ..artifact.sites import Site
from ..artifact.updates import WeightUpdate
from ..errors import UsageError

Variant = Literal["projector", "low-rank", "lora", "closed-form"]
_RATES: dict[str, float] = {"projector": 5e-4, "low-rank": 3e-3, "lora": 1e-3, "closed-form": 1.0}


@dataclass(frozen=True)
class Aligned:
    """What aligning a model gave.

    Attributes:
        updates: new weights.
        training: curve and circumstances; see ``toolkit.alignment.trainer``.
        alignment: per layer, how near pictures lie to their captions before and after; see
            ``toolkit.alignment.measure``.
    """

    updates: tuple[WeightUpdate, ...]
    training: Mapping[str, JsonValue]
    alignment: Mapping[str, JsonValue]


class SupportsAligning(Protocol):
    """A model with captioned pictures (``toolkit.alignment.Aligner``)."""

    @property
    def base(self) -> BaseInfo: ...

    @property
    def data(self) -> DataInfo: ...

    def align(self, settings: TGA) -> Aligned: ...


@dataclass(frozen=True)
class TGA:
    """Settings of a fit.

    Attributes:
        variant: what is trained.
        layers: aligned decoder layers, from 0; None takes all from a quarter of the depth on.
        guide_weight: of the picture's terms, per layer.
        centred: subtract means before the cosine.
        retrieval: include the term with retrieved text, and its prefix.
        prefixed: share of rows with the retrieved text before the instruction.
        request_weight, opening_weight: of the request's states and of the first answer token.
        shuffled: share of rows whose instruction is drawn from another picture.
        ce_weight: of the answers' cross-entropy.
        steps, batch_size, accumulate: optimizer steps; rows per pass; passes per step.
        lr: peak learning rate; None takes the variant's.
        rank: of low-rank changes.
        ridge: λ of the closed form; None chooses it by generalised cross-validation.
        seed: of rows and initial values.
    """

    variant: Variant = "lora"
    layers: tuple[int, ...] | None = None
    guide_weight: float = 0.1
    centred: bool = True
    retrieval: bool = True
    prefixed: float = 0.0
    request_weight: float = 0.5
    opening_weight: float = 1.0
    shuffled: float = 0.5
    ce_weight: float = 2.0
    steps: int = 200
    batch_size: int = 16
    accumulate: int = 1
    lr: float | None = None
    rank: int = 4
    ridge: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise UsageError(f"There is no variant {self.variant!r}.", f"It is one of {', '.join(get_args(Variant))}.")
        weights = (self.guide_weight, self.request_weight, self.opening_weight, self.ce_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise UsageError("Weights of the loss are at least 0, and one of them is more.", "Correct the weights.")
        for name in ("steps", "batch_size", "accumulate", "rank"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1.", "Give a larger number.")
        if self.rate <= 0 or (self.ridge is not None and self.ridge < 0):
            raise UsageError("The learning rate must be positive and the ridge not negative.", "Correct them.")
        if not (0 <= self.prefixed <= 1 and 0 <= self.shuffled <= 1):
            raise UsageError("Shares of rows lie between 0 and 1.", "Correct prefixed or shuffled.")

    @property
    def rate(self) -> float:
        """The peak learning rate."""
        return _RATES[self.variant] if self.lr is None else self.lr

    def layers_of(self, n_layers: int) -> tuple[int, ...]:
        """The aligned layers of a decoder with ``n_layers`` blocks.

        Raises:
            UsageError: one of them does not exist.
        """
        if self.layers is None:
            return tuple(range(n_layers // 4, n_layers))
        if not self.layers:
            raise UsageError("No layer is to be aligned.", "Name at least one.")
        for layer in self.layers:
            Site.block(layer).require_within(n_layers)
        return tuple(sorted(set(self.layers)))

    def fit(self, source: SupportsAligning) -> Adapter:
        """Align the model of ``source``.

        Raises:
            UsageError: a layer does not exist, or the model has nothing to train.
        """
        layers = self.layers_of(source.base.n_layers)
        found = source.align(self)
        return Adapter(
            AdapterInfo(
                method="tga",
                variant=self.variant,
                sign_convention="none: weights are replaced or added to",
                hyperparameters={**asdict(self), "layers": list(layers), "lr": self.rate},
                seed=self.seed,
                base=source.base,
                data=source.data,
                versions={**library_versions(), **training_versions()},
            ),
            attachments={"training": dict(found.training), "alignment": dict(found.alignment)},
            updates=found.updates,
        )


def training_versions() -> dict[str, str]:
    """Installed versions of what training depends on besides."""
    from importlib.metadata import version

    return {name: version(name) for name in ("peft", "accelerate")}
