"""The channel map: what a diagnosis found, as a file that fits read to choose their layers.

A folder with ``channel_map.json`` (every figure with its interval, sealed by its own digest) and
``channel_map.safetensors`` (what the figures were computed from), which the JSON names by its SHA-256:

=======================  ==============================================  =====================================
tensor                   shape                                           what
=======================  ==============================================  =====================================
``margin.M``             [2, pairs]                                      malicious and benign margin, nats
``nie.M``, ``nde.M``     [positions, (attn, mlp, block), layers, pairs]  effects per pair, nats
``attribution.M.P``      [layers, d_ff]                                  first-order NIE of every MLP neuron
``neurons.M``            [neurons, pairs]                                exact NIE of the verified neurons
=======================  ==============================================  =====================================

M is a modality, P a kind of position; the order of positions, pairs and neurons is that of the JSON.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import JsonValue

from ...adapters.artifact.files import read_inside
from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import BaseInfo, DataInfo, Files, Strict, dump_sealed, load_sealed
from ...adapters.artifact.output import atomic_folder
from ...adapters.errors import InvalidArtifact, UsageError, WrongBase
from .intervals import Estimate
from .terms import Curve, MediatorKind, Modality, Positions, Window

MAP, TENSORS = "channel_map.json", "channel_map.safetensors"
_MAP_LIMIT, _TENSORS_LIMIT = 256 * 2**20, 16 * 2**30


class RefusalInfo(Strict):
    """How the model refuses; see ``toolkit.refusal``.

    Attributes:
        refused: share of the harmful text records asked that were refused.
    """

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    text: str
    first: int
    refused: float


class SiteEffect(Strict):
    """Effects of one site at one kind of position, in nats."""

    kind: MediatorKind
    layer: int
    positions: Positions
    nie: Estimate
    nde: Estimate


class NeuronEffect(Strict):
    """One verified neuron.

    Attributes:
        rank: among all neurons by absolute attribution, from 0; None for one drawn at random.
        attribution, nie: first-order and exact effect at all positions, in nats.
    """

    layer: int
    neuron: int
    rank: int | None
    attribution: float
    nie: Estimate


class ModalityEffects(Strict):
    """What the pairs of one modality showed.

    Attributes:
        pairs: ids of the malicious records.
        left_out: pairs whose pictures become different numbers of tokens.
        total: TE, in nats.
        rank_correlation: Spearman's, of attribution and exact NIE over all verified neurons.
    """

    pairs: tuple[str, ...]
    left_out: int
    positions: tuple[Positions, ...]
    malicious: Estimate
    benign: Estimate
    total: Estimate
    sites: tuple[SiteEffect, ...]
    neurons: tuple[NeuronEffect, ...]
    rank_correlation: float | None


class FoundLayers(Strict):
    """Layers by role; None or empty where the records did not suffice to find them.

    Attributes:
        critical: per modality all layers, the most critical first: by |NIE| of attention plus |NIE| of MLP at the last
            prompt position, where the answer is decided.
        safety, fused: see ``diagnosis.fusion``.
        align: see ``diagnosis.lens``.
    """

    critical: dict[Modality, tuple[int, ...]]
    safety: int | None
    fused: int | None
    align: tuple[int, ...]


class ChannelMapInfo(Strict):
    """``channel_map.json``.

    Attributes:
        chance: accuracy of always naming the most frequent category, to hold readability against.
        rise: D^l of refusal through the LM head, in nats; see ``diagnosis.lens``.
        windows: what skipping layers does to ``windows_on`` records.
    """

    schema_version: Literal[1] = 1
    base: BaseInfo
    data: DataInfo
    hyperparameters: dict[str, JsonValue]
    seed: int
    versions: dict[str, str]
    refusal: RefusalInfo
    effects: dict[Modality, ModalityEffects]
    windows_on: Literal["pictures", "text"]
    windows: tuple[Window, ...]
    separation: tuple[Curve, ...]
    readability: tuple[Curve, ...]
    chance: float
    rise: tuple[Curve, ...]
    layers: FoundLayers
    files: Files


@dataclass(frozen=True)
class ChannelMap:
    """A diagnosis.

    Attributes:
        info: every figure.
        tensors: what they were computed from, by name.
    """

    info: ChannelMapInfo
    tensors: Mapping[str, np.ndarray]

    @classmethod
    def seal(cls, info: ChannelMapInfo, tensors: Mapping[str, np.ndarray]) -> ChannelMap:
        """The map of ``info`` with the digest of ``tensors`` put in."""
        digest = hashlib.sha256(_dump(tensors)).hexdigest()
        return cls(info.model_copy(update={"files": {TENSORS: digest}}), tensors)

    @property
    def base(self) -> BaseInfo:
        """The model that was diagnosed."""
        return self.info.base

    def require_base(self, fingerprint: str, name: str) -> None:
        """Refuse another model than the diagnosed one.

        Args:
            fingerprint: of the model whose layers are to be chosen.
            name: how to call it in the error.

        Raises:
            WrongBase: the fingerprints differ.
        """
        if fingerprint != self.base.fingerprint:
            raise WrongBase(
                f"The channel map was made for model {self.base.fingerprint[:12]}, but {name} is {fingerprint[:12]}.",
                "Diagnose this model, or name the layers yourself.",
            )

    def layers_for(self, modality: Modality, count: int) -> tuple[int, ...]:
        """The ``count`` most critical layers of a modality, ascending.

        Raises:
            UsageError: the modality was not diagnosed, or the model has fewer layers.
        """
        ranking = self.info.layers.critical.get(modality)
        if ranking is None:
            found = ", ".join(self.info.layers.critical)
            raise UsageError(
                f"The channel map knows no {modality} layers, only {found}.",
                "Diagnose with pairs of that kind, or name the layers yourself.",
            )
        if not 1 <= count <= len(ranking):
            raise UsageError(
                f"{count} critical layers were asked for, but the decoder has {len(ranking)}.",
                f"Ask for 1 to {len(ranking)} layers.",
            )
        return tuple(sorted(ranking[:count]))

    @property
    def safety_layer(self) -> int:
        """Where harm in text is perceived first.

        Raises:
            UsageError: the records did not suffice to find it; so for the next two.
        """
        return self._found("safety", self.info.layers.safety, "harmful and harmless text records")

    @property
    def fused_layer(self) -> int:
        """Where the meaning of pictures has arrived in the text."""
        return self._found("fused", self.info.layers.fused, "picture records with a category")

    @property
    def align_layers(self) -> tuple[int, ...]:
        """Where refusal rises."""
        if not self.info.layers.align:
            self._found("align", None, "harmful text records that the model refuses")
        return self.info.layers.align

    def _found(self, name: str, layer: int | None, needed: str) -> int:
        if layer is None:
            raise UsageError(
                f"The channel map holds no {name} layer.", f"Diagnose with more {needed}, or name the layer yourself."
            )
        return layer

    def save(self, folder: Path, *, overwrite: bool = False, beside: Mapping[str, bytes] | None = None) -> Path:
        """Write the folder; it appears complete or not at all, and the same map gives the same bytes.

        Args:
            beside: further files, such as plots. Nothing reads them back.

        Raises:
            UsageError: ``folder`` exists and ``overwrite`` is off.
        """
        with atomic_folder(folder, overwrite=overwrite) as work:
            contents = {MAP: dump_sealed(self.info), TENSORS: _dump(self.tensors), **(beside or {})}
            for name, data in contents.items():
                (work / name).write_bytes(data)
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> ChannelMap:
        """Read a folder that :meth:`save` wrote.

        Raises:
            UsageError: there is no such folder.
            InvalidArtifact: a file is missing, truncated or changed; it is named.
        """
        folder = located(folder)
        if not folder.is_dir():
            raise UsageError(f"There is no channel map at {folder}.", "Make one with `safetykit diagnose`.")
        info = load_sealed(ChannelMapInfo, read_inside(folder, MAP, _MAP_LIMIT), str(folder / MAP))
        data = read_inside(folder, TENSORS, _TENSORS_LIMIT)
        if hashlib.sha256(data).hexdigest() != info.files.get(TENSORS):
            raise InvalidArtifact(f"{folder / TENSORS} was changed or truncated.", "Diagnose the model again.")
        try:
            return cls(info, safetensors.numpy.load(data))
        except (safetensors.SafetensorError, ValueError, KeyError) as error:
            raise InvalidArtifact(f"{folder / TENSORS} is no safetensors file: {error}.", "Diagnose again.") from None


def _dump(tensors: Mapping[str, np.ndarray]) -> bytes:
    return safetensors.numpy.save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)})
