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

from ..artifact.adapter import Adapter
from ..artifact.manifest import AdapterInfo, library_versions
from ..protocols import Workbench
from .cost import cost, within
from .settings import TGA, SupportsAligning


def fit(settings: TGA, source: SupportsAligning) -> Adapter:
    """See :meth:`TGA.fit`."""
    layers = settings.layers_of(source.base.n_layers)
    settings = within(settings, source.data.counts)
    found = source.align(settings)
    return Adapter(
        AdapterInfo(
            method="tga",
            variant=settings.variant,
            sign_convention="none: weights are replaced or added to",
            hyperparameters={**settings.values(), "layers": list(layers), "lr": settings.rate},
            seed=settings.seed,
            base=source.base,
            data=source.data,
            versions={**library_versions(), **training_versions()},
        ),
        attachments={"training": dict(found.training), "alignment": dict(found.alignment)},
        updates=found.updates,
    )


def fit_on(settings: TGA, bench: Workbench) -> Adapter:
    """Fit with what a workbench has; layers that are missing are refused before anything runs."""
    settings.layers_of(bench.model.base.n_layers)
    aligner = bench.aligner()
    bench.phase(f"aligning: {cost(within(settings, aligner.data.counts), aligner.data.counts)}")
    return fit(settings, aligner)


def training_versions() -> dict[str, str]:
    """Installed versions of what training depends on besides."""
    from importlib.metadata import version

    return {name: version(name) for name in ("peft", "accelerate")}
