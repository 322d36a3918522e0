"""``diagnosis.json``: the channel map that an adapter's layers were taken from."""

from __future__ import annotations

from dataclasses import replace

from ....adapters.section import Section
from ....toolkit.diagnosis.channel_map import ChannelMapInfo
from ..diagnosis_plots import diagnosis_plots
from ..plots import Plot


def _plots(info: ChannelMapInfo, tag: str) -> tuple[Plot, ...]:
    plots = [item.plot for item in diagnosis_plots(info)]
    # A page may hold several maps: the names inside their drawings must differ.
    return tuple(
        replace(plot, tag=f"{tag}-{plot.tag}", svg=plot.svg.replace(f"{plot.tag}-", f"{tag}-{plot.tag}-"))
        for plot in plots
    )


DIAGNOSIS = Section("diagnosis", ChannelMapInfo, lambda value, tag, draw: _plots(value, tag))
