"""From a model and captioned pictures to aligned weights: what `TGA(...).fit` asks for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...adapters.artifact.manifest import BaseInfo, DataInfo
from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UsageError
from ...adapters.settings import option_of
from ...adapters.tga.settings import TGA, Aligned
from ..data.captions import CaptionedPicture, describe_captions
from ..distributed.dealing import dealt
from ..distributed.world import is_first
from ..model.requests import Request
from ..model.updates import updated
from ..progress import Progress
from .batches import Batches
from .checkpoint import Checkpoint
from .closed_form import AffineCorrection
from .forward import PictureFeatures, caption_states, require_projector, run
from .loss import pooled
from .measure import nearness
from .neighbours import NearestPictures, Retriever
from .targets import trained
from .trainer import Losses, TextStates, train

if TYPE_CHECKING:
    from ..model.vlm import VLM

_BATCH = 64
_FEATURES, _CHECKPOINT = "features.safetensors", "checkpoint"


class Aligner:
    """A VLM with captioned pictures (``adapters.tga.SupportsAligning``).

    Args:
        captions: pictures with captions and turns; no safety label.
        retriever: finds texts for the pictures; by default the nearest other picture's caption.
        work: folder for picture features and checkpoints, so that an interrupted fit goes on where it was; None
            keeps features in memory and nothing else. :meth:`finish` removes it.
        progress: told the steps done.

    Raises:
        UsageError: the model has no projector to train, is not in float32, or there are no captions.
    """

    def __init__(
        self,
        vlm: VLM,
        captions: Sequence[CaptionedPicture],
        retriever: Retriever | None = None,
        *,
        work: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        if not captions:
            raise UsageError("There are no captioned pictures.", "Pass some.")
        if not all(isinstance(item, CaptionedPicture) for item in captions):
            raise UsageError(
                "Something other than captioned pictures was given to train on.",
                "TGA is trained without safety labels: load captions with load_captions, not records.",
            )
        require_projector(vlm)
        if vlm.model.dtype != torch.float32:
            raise UsageError(
                f"The model is in {str(vlm.model.dtype).removeprefix('torch.')}; small steps would be rounded away.",
                "Load it with dtype float32; passes run in bfloat16 where the device has it.",
            )
        self.vlm, self.captions = vlm, list(captions)
        self._retriever, self._work, self._progress = retriever or NearestPictures(), work, progress

    @property
    def base(self) -> BaseInfo:
        return self.vlm.base

    @cached_property
    def data(self) -> DataInfo:
        """Hash and counts of the captions."""
        return describe_captions(self.captions)

    @cached_property
    def features(self) -> PictureFeatures:
        """What the projector reads of every picture."""
        path = None
        if self._work is not None and is_first():
            path = self._work / f"{self.vlm.fingerprint[:12]}-{self.data.sha256[:12]}-{_FEATURES}"
        return PictureFeatures(self.vlm, self.captions, path)

    @cached_property
    def retrieved(self) -> list[str]:
        """The text retrieved for each picture."""
        return self._retriever.texts(self.captions, self.features.means)

    def align(self, settings: TGA) -> Aligned:
        """See :meth:`safetykit.adapters.tga.tga.TGA.fit`."""
        layers = settings.layers_of(len(self.vlm.parts.layers))
        self._checkpoint(settings).require()
        pictures = self.picture_states(layers)
        texts = self.text_states(layers, pictures, settings.retrieval)
        words = [item.caption for item in self.captions]
        before = {layer: nearness(pictures[layer], texts.caption[layer], words) for layer in layers}
        if settings.variant == "closed-form":
            updates, training = self._closed_form(settings, layers, pictures, texts)
        else:
            updates, training = self._train(settings, texts)
        with updated(self.vlm, updates):
            pictures = self.picture_states(layers)
        after = {layer: nearness(pictures[layer], texts.caption[layer], words) for layer in layers}
        alignment = {str(layer): {"before": before[layer], "after": after[layer]} for layer in layers}
        return Aligned(updates, training, alignment)

    @torch.no_grad()
    def picture_states(self, layers: Sequence[int]) -> dict[int, Float[Tensor, "pictures d_model"]]:
        """Mean state of each picture's tokens per layer, as the model is now; float32 on the CPU."""
        found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        count = len(self.captions)

        def read(items: range) -> dict[int, Tensor]:
            inputs = self.vlm.inputs.prepare([Request("", self.captions[at].picture()) for at in items])
            states = run(self.vlm, inputs, layers, self.features.given(items, inputs)).states
            mask = torch.from_numpy(inputs.vision_mask).to(self.vlm.device)
            return {layer: pooled(states[layer], mask).cpu() for layer in layers}

        for _, rows in dealt([range(at, min(at + _BATCH, count)) for at in range(0, count, _BATCH)], read):
            for layer in layers:
                found[layer].append(rows[layer])
        return {layer: torch.cat(rows) for layer, rows in found.items()}

    def finish(self) -> None:
        """Remove the work folder, from which an interrupted run would go on."""
        if self._work is not None and is_first():
            shutil.rmtree(self._work, ignore_errors=True)

    def text_states(self, layers: Sequence[int], pictures: dict[int, Tensor], retrieval: bool) -> TextStates:
        words = [item.caption for item in self.captions]
        other = self.retrieved if retrieval else words
        unique = list(dict.fromkeys([*words, *other]))
        states = caption_states(self.vlm, unique, layers)
        place = {text: at for at, text in enumerate(unique)}
        mine, theirs = [place[text] for text in words], [place[text] for text in other]
        caption = {layer: states[layer][mine] for layer in layers}
        return TextStates(
            caption,
            {layer: states[layer][theirs] for layer in layers},
            {layer: (pictures[layer].mean(0), caption[layer].mean(0)) for layer in layers},
        )

    def _train(self, settings: TGA, texts: TextStates) -> tuple[tuple[WeightUpdate, ...], dict[str, Any]]:
        retrieved = self.retrieved if settings.retrieval else [""] * len(self.captions)
        batches = Batches(
            self.vlm.inputs,
            self.captions,
            retrieved,
            size=settings.batch_size,
            seed=settings.seed,
            shuffled=settings.shuffled,
            prefixed=settings.prefixed if settings.retrieval else 0.0,
        )
        with trained(self.vlm, settings) as found:
            losses = Losses(self.vlm, settings, self.features, texts, found)
            training = train(
                self.vlm,
                settings,
                batches,
                losses,
                found,
                checkpoint=self._checkpoint(settings, retrieved),
                progress=self._progress,
            )
            return found.updates(), training

    def _checkpoint(self, settings: TGA, retrieved: Sequence[str] | None = None) -> Checkpoint:
        """Of this run; without the retrieved texts, of all that is known before they are found."""
        folder = self._work / _CHECKPOINT if self._work is not None and is_first() else None
        identity: dict[str, Any] = {"model": self.vlm.fingerprint, "captions": self.data.sha256}
        if retrieved is not None:
            identity["retrieved texts (--index)"] = list(retrieved)
        return Checkpoint(
            folder, {**identity, **{option_of(TGA, name): one for name, one in settings.values().items()}}
        )

    def _closed_form(
        self, settings: TGA, layers: Sequence[int], pictures: dict[int, Tensor], texts: TextStates
    ) -> tuple[tuple[WeightUpdate, ...], dict[str, Any]]:
        start = time.monotonic()
        layer = layers[len(layers) // 2]
        name, last = self._last_linear()
        with torch.no_grad():
            projected = self.features.projected_means()
        found = AffineCorrection.fit(projected, pictures[layer], texts.caption[layer], settings.ridge)
        weight, bias = found.folded(last.weight.detach(), None if last.bias is None else last.bias.detach())
        updates = (
            WeightUpdate(f"{name}.weight", {"value": weight.float()}),
            WeightUpdate(f"{name}.bias", {"value": bias.float()}),
        )
        training = {
            "layer": layer,
            "ridge": found.penalty,
            "error": found.error,
            "seconds": round(time.monotonic() - start, 1),
            "device": "cpu",
            "precision": "float64",
            "parameters": weight.numel() + bias.numel(),
            "targets": [update.parameter for update in updates],
        }
        return updates, training

    def _last_linear(self) -> tuple[str, nn.Linear]:
        """The projector's last linear layer, by its name in the model.

        Raises:
            UsageError: there is none, or something comes after it.
        """
        inside = {id(module) for module in self.vlm.parts.projector.modules()}
        linears = [
            (name, module)
            for name, module in self.vlm.model.named_modules()
            if id(module) in inside and isinstance(module, nn.Linear)
        ]
        if not linears or not self._ends_in(linears[-1][1]):
            raise UsageError("The projector does not end in a linear layer.", "Train it: --variant projector.")
        return linears[-1]

    @torch.no_grad()
    def _ends_in(self, linear: nn.Linear) -> bool:
        seen: list[Tensor] = []
        with ExitStack() as stack:
            for module in (linear, self.vlm.parts.projector):
                keep = module.register_forward_hook(lambda _, __, output: seen.append(output))
                stack.callback(keep.remove)
            self.vlm.see(self.vlm.inputs.prepare([Request("", self.captions[0].picture())]))
        return len(seen) == 2 and torch.equal(seen[0].reshape(seen[1].shape), seen[1])
