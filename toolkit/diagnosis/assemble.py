"""From raw effects, states and outcomes to the channel map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from ...adapters.artifact.manifest import DataInfo
from ..evaluation.judge import Outcome
from ..evaluation.refusal import RefusalTokens
from .blocking import compare
from .channel_map import (
    ChannelMap,
    ChannelMapInfo,
    FoundLayers,
    ModalityEffects,
    NeuronEffect,
    RefusalInfo,
    SiteEffect,
)
from .fusion import chance, first_near_maximum, readability
from .intervals import Estimate, estimate_difference, estimate_mean, mean_intervals
from .lens import layers_of_rise, rises
from .mediation import Effects
from .separation import separation
from .states import LayerStates
from .terms import KINDS, Curve, Modality

if TYPE_CHECKING:
    from ..model.vlm import VLM


@dataclass(frozen=True)
class Findings:
    """Everything measured, before it is summarised.

    Attributes:
        neurons: per modality ``attribution`` by position, ``verified`` neurons of which the first ``foremost`` are the
            foremost, and their ``exact`` effects per pair; empty when neurons were left out.
        outcomes: per window of skipped layers.
    """

    refusal: RefusalTokens
    states: LayerStates
    effects: Mapping[Modality, Effects]
    pair_ids: Mapping[Modality, Sequence[str]]
    left_out: Mapping[Modality, int]
    neurons: Mapping[Modality, Mapping[str, Any]]
    outcomes: Mapping[tuple[int, ...], list[Outcome | None]]
    windows_on: Literal["pictures", "text"]


def assemble(
    vlm: VLM, found: Findings, data: DataInfo, hyperparameters: dict[str, Any], seed: int, versions: dict[str, str]
) -> ChannelMap:
    """Summarise; runs the LM head over kept states and nothing else of the model."""
    curves = separation(found.states, seed)
    readable = readability(found.states, seed)
    rise = _rises(vlm, found, seed)
    info = ChannelMapInfo(
        base=vlm.base,
        data=data,
        hyperparameters=hyperparameters,
        seed=seed,
        versions=versions,
        refusal=RefusalInfo(
            token_ids=found.refusal.token_ids,
            tokens=tuple(vlm.inputs.tokenizer.convert_ids_to_tokens(list(found.refusal.token_ids))),
            text=found.refusal.text,
            first=found.refusal.first,
            refused=found.refusal.refused,
        ),
        effects={modality: _effects(found, modality, seed) for modality in found.effects},
        windows_on=found.windows_on,
        windows=compare(dict(found.outcomes), seed),
        separation=tuple(curves),
        readability=tuple(readable),
        chance=chance(found.states),
        rise=tuple(rise),
        layers=_layers(found, curves, readable, rise),
        files={},
    )
    return ChannelMap.seal(info, _tensors(found))


def _effects(found: Findings, modality: Modality, seed: int) -> ModalityEffects:
    effects = found.effects[modality]
    nie, nde = _estimates(effects.nie, seed), _estimates(effects.nde, seed)
    sites = [
        SiteEffect(kind=kind, layer=layer, positions=where, nie=nie[at, column, layer], nde=nde[at, column, layer])
        for at, where in enumerate(effects.positions)
        for column, kind in enumerate(KINDS)
        for layer in range(effects.nie.shape[2])
    ]
    neurons, correlation = _neurons(found.neurons.get(modality), seed)
    return ModalityEffects(
        pairs=tuple(found.pair_ids[modality]),
        left_out=found.left_out[modality],
        positions=effects.positions,
        malicious=estimate_mean(effects.malicious, seed),
        benign=estimate_mean(effects.benign, seed),
        total=estimate_mean(effects.total, seed),
        sites=tuple(sites),
        neurons=neurons,
        rank_correlation=correlation,
    )


def _estimates(values: Float[np.ndarray, "*cells pairs"], seed: int) -> np.ndarray:
    """An array of :class:`Estimate` per cell."""
    low, high = mean_intervals(values, seed)
    means = values.astype(np.float64).mean(-1)
    cells = [
        Estimate(value=float(v), low=float(a), high=float(b))
        for v, a, b in zip(means.flat, low.flat, high.flat, strict=True)
    ]
    found = np.empty(len(cells), dtype=object)
    found[:] = cells
    return found.reshape(means.shape)


def _neurons(found: Mapping[str, Any] | None, seed: int) -> tuple[tuple[NeuronEffect, ...], float | None]:
    if found is None:
        return (), None
    attribution = found["attribution"]["all"]
    given = [float(attribution[neuron]) for neuron in found["verified"]]
    rows = tuple(
        NeuronEffect(
            layer=layer,
            neuron=neuron,
            rank=at if at < found["foremost"] else None,
            attribution=given[at],
            nie=estimate_mean(found["exact"][at], seed),
        )
        for at, (layer, neuron) in enumerate(found["verified"])
    )
    exact = [row.nie.value for row in rows]
    constant = len(set(given)) < 2 or len(set(exact)) < 2
    return rows, None if constant else float(spearmanr(given, exact).statistic)


def _rises(vlm: VLM, found: Findings, seed: int) -> list[Curve]:
    """D^l of harmful and harmless halves of pairs, and their contrast, for text and for pictures."""
    curves = []
    for kind, shown in (("text", False), ("pictures", True)):
        states = found.states.where(lambda record, shown=shown: record.pair is not None and record.pictured == shown)
        halves = {
            label: rises(vlm, states.where(lambda record, label=label: record.label == label), found.refusal).T
            for label in ("harmful", "harmless")
        }
        if all(half.size for half in halves.values()):
            for label, half in halves.items():
                curves.append(Curve.of(f"rise, {label}", kind, [estimate_mean(values, seed) for values in half]))
            contrast = [estimate_difference(*values, seed) for values in zip(*halves.values(), strict=True)]
            curves.append(Curve.of("rise, contrast", kind, contrast))
    return curves


def _layers(found: Findings, curves: Sequence[Curve], readable: Sequence[Curve], rise: Sequence[Curve]) -> FoundLayers:
    areas = next((curve for curve in curves if (curve.measure, curve.records) == ("probe AUROC", "text")), None)
    safety = first_near_maximum(areas.values) if areas else None
    last = next((curve for curve in readable if curve.records == "last position"), None)
    fused = first_near_maximum(last.values, safety + 1) if last and safety is not None else None
    text = next((curve for curve in rise if (curve.measure, curve.records) == ("rise, contrast", "text")), None)
    return FoundLayers(
        critical={modality: critical(effects) for modality, effects in found.effects.items()},
        safety=safety,
        fused=fused,
        align=layers_of_rise(text.values) if text else (),
    )


def critical(effects: Effects) -> tuple[int, ...]:
    """All layers by |NIE| of attention plus |NIE| of MLP at the last prompt position, largest first."""
    means = np.abs(effects.nie[effects.positions.index("last")].astype(np.float64).mean(-1))
    score = means[KINDS.index("attn")] + means[KINDS.index("mlp")]
    return tuple(int(layer) for layer in np.argsort(-score, kind="stable"))


def _tensors(found: Findings) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for modality, effects in found.effects.items():
        tensors[f"margin.{modality}"] = np.stack([effects.malicious, effects.benign])
        tensors[f"nie.{modality}"], tensors[f"nde.{modality}"] = effects.nie, effects.nde
    for modality, neurons in found.neurons.items():
        tensors[f"neurons.{modality}"] = neurons["exact"]
        for where, values in neurons["attribution"].items():
            tensors[f"attribution.{modality}.{where}"] = values
    return tensors
