"""What the diagnosis finds in a model and what it costs.

    python bench/diagnosis.py MODEL --data DATA [-o OUT] [--again]

Prints the layers found, the effects behind them, and the time of one run on one thread (of the processor, and on the
clock); -o keeps the channel map and its plots. With --again a second run on other pairs (the calibration split in the
place of fit) shows whether what is said about layers and neurons holds beyond the pairs it was found on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from safetykit.bench.skeleton import arguments, emit, one_thread, run, say
from safetykit.export.document.diagnosis_plots import diagnosis_plots
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.diagnosis import ChannelMap, diagnose
from safetykit.toolkit.diagnosis.intervals import Estimate
from safetykit.toolkit.diagnosis.terms import Modality
from safetykit.toolkit.model.vlm import VLM


def elsewhere(record: Record) -> Record:
    """The record as one of the fit split."""
    return record.model_copy(update={"split": "fit"})


def timed(vlm: VLM, records: list[Record]) -> tuple[ChannelMap, dict[str, float]]:
    """One diagnosis and its seconds, the tower's features not remembered."""
    vlm.features.clear()
    clock, processor = time.perf_counter(), time.process_time()
    found = diagnose(vlm, records, say=say)
    seconds = {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}
    return found, {name: round(value, 1) for name, value in seconds.items()}


def agreement(first: ChannelMap, second: ChannelMap, modality: Modality) -> dict[str, float]:
    """Rank correlation (Spearman) of two maps' NIE of layers' additions at the last token, and of attributions."""

    def additions(found: ChannelMap) -> list[float]:
        sites = found.info.effects[modality].sites
        return [site.nie.value for site in sites if site.positions == "last" and site.kind != "block"]

    def attributions(found: ChannelMap) -> np.ndarray:
        return found.tensors[f"attribution.{modality}.all"].ravel()

    ours, theirs = attributions(first), attributions(second)
    top = [set(np.argsort(-np.abs(values))[: len(values) // 100].tolist()) for values in (ours, theirs)]
    return {
        "sites": float(spearmanr(additions(first), additions(second)).statistic),
        "neurons": float(spearmanr(ours, theirs).statistic),
        "top 1 % of neurons in common": len(top[0] & top[1]) / len(top[0]),
    }


def summary(found: ChannelMap) -> dict[str, object]:
    """What one reads first."""
    info = found.info
    return {
        "layers": info.layers.model_dump(mode="json"),
        "refusal": info.refusal.model_dump(mode="json"),
        "forward_passes": info.hyperparameters["forward_passes"],
        "effects": {
            modality: {
                "pairs": len(effects.pairs),
                "total": spell(effects.total),
                "rank_correlation": effects.rank_correlation,
                "foremost": [f"{item.layer}.{item.neuron}: {spell(item.nie)}" for item in effects.neurons[:5]],
                "nie": {
                    f"{where} {kind}": [spell(s.nie) for s in effects.sites if (s.positions, s.kind) == (where, kind)]
                    for where in effects.positions
                    for kind in ("attn", "mlp", "block")
                },
            }
            for modality, effects in info.effects.items()
        },
        "windows": {
            "-".join(map(str, window.layers)) or "none": f"attack success {100 * window.attack_success.rate:.1f} % "
            f"({spell(window.attack_success_change)}), refused {100 * window.refused.rate:.1f} % "
            f"({spell(window.refused_change)})"
            for window in info.windows
        },
        "curves": {
            f"{curve.measure}, {curve.records}": [round(value, 3) for value in curve.values]
            for curve in (*info.separation, *info.readability, *info.rise)
        },
    }


def spell(item: Estimate) -> str:
    """−1.23 (−1.50 to −0.98)."""
    return f"{item.value:+.2f} ({item.low:+.2f} to {item.high:+.2f})"


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--again", action="store_true", help="diagnose a second time, on calibration pairs")
    options = parser.parse_args(given)
    one_thread()
    vlm = VLM.from_pretrained(model_path(options.model))
    found, seconds = timed(vlm, load_records(data_path(options.data), ["fit"]))
    if options.out:
        plots = diagnosis_plots(found)
        beside = {f"{item.plot.tag}.png": item.png for item in plots}
        beside |= {f"{item.plot.tag}.svg": item.plot.svg.encode() for item in plots}
        found.save(options.out, overwrite=True, beside=beside)
    result = {**summary(found), "seconds": seconds}
    if options.again:
        other, _ = timed(vlm, [elsewhere(record) for record in load_records(data_path(options.data), ["calibration"])])
        result["on calibration pairs"] = {
            "layers": other.info.layers.model_dump(mode="json"),
            "agreement": {
                modality: agreement(found, other, modality)
                for modality in found.info.effects
                if modality in other.info.effects
            },
        }
    emit(result)


if __name__ == "__main__":
    run(main)
