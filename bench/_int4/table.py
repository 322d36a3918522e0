"""What rounding costs, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safetykit.bench.skeleton import (
    percent,
)

from .laboratory import FULL, VARIANTS


def share(rate: Mapping[str, Any]) -> str:
    """12 of 160 (4.3–12.6 %)."""
    return f"{rate['count']} of {rate['n']} ({100 * rate['low']:.1f}–{100 * rate['high']:.1f} %)"


def table(found: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    said = found["options"]
    lines = [
        f"`{found['called']}`, {found['calibration']} calibration records, greedy answers of {said['max_new_tokens']} "
        f"tokens, one thread; a prefill of {said['tokens']} tokens and a decoding step after it, medians of "
        f"{said['rounds']} rounds of processor time. Wilson 95 % intervals.",
        "",
        "| rounding, weights a scale | decoder, MB | prefill, ms | decode, ms | same next token | divergence "
        "| decisions flipped |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    if FULL in found["ms"]:
        prefill, decode = found["ms"][FULL]
        lines.append(f"| fp32 | {found['full_mb']:.0f} | {prefill:.1f} | {decode:.2f} | 100 % | 0 | 0 |")
    for name in VARIANTS:
        if (row := found["variants"].get(name)) is None:
            continue
        prefill, decode = found["ms"].get(name, (float("nan"), float("nan")))
        lines.append(
            f"| {name} | {row['mb']:.0f} | {prefill:.1f} | {decode:.2f} | {percent(row['same'])} "
            f"| {row['divergence']:.3f} | {share(row['flips']) if 'flips' in row else 'not measured'} |"
        )
    for name, rows in found["confirmed"].items():
        lines += [
            "",
            f"**{name}**, {found['test']} test records, against PyTorch with the checkpoint's weights and adapter:",
            "",
            "| | decisions flipped | … that the unmodified model does not flip |",
            "|---|---:|---:|",
        ]
        lines += [
            f"| {words} | {share(row['all'])} | {share(row['adapter'])} |"
            for words, row in sorted(rows.items(), key=lambda one: (one[0] != "unmodified", one[0]))
        ]
    return "\n".join(lines) + "\n"
