"""The roofline as a picture: ceilings of the devices, stages of the policy as points below them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from rfedge.io.plotting import check_matplotlib, save_figure
from rfedge.runtimes.roofline.devices import Device
from rfedge.runtimes.roofline.report import Inspection
from rfedge.runtimes.roofline.work import STAGES, Arithmetic

_MARKERS: Final = {"preprocess": "P", "vision": "o", "resampler": "s", "decoder": "D", "head": "^"}
_MOST_DEVICES: Final = 6
_FAMILIES: Final = ("orin-nano-8gb-super", "orin-nx-16gb-super", "agx-orin-64gb", "thor-t5000")


def plot_roofline(inspection: Inspection, path: Path) -> None:
    """Draw the roofline to the picture file `path`; its ending names the format.

    Each device has a roof (bandwidth, then its peak in the policy's commonest arithmetic). A stage stands at its arithmetic
    intensity and, under each roof, at the best rate of its prediction, with a line down to the worst.
    """
    check_matplotlib("--plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    work = inspection.work
    by_arithmetic = work.total().macs_by_arithmetic
    main: Arithmetic = max(by_arithmetic, key=lambda name: by_arithmetic[name])
    stages = {stage: sums for stage in STAGES if (sums := work.stage(stage)).macs and sums.traffic_bytes}
    devices = _plotted(inspection)
    corners = [item.rate(main)[1] / item.bandwidth for item in devices]
    intensities = [sums.intensity for sums in stages.values()]
    x = np.geomspace(min([*intensities, *corners]) / 4, max([*intensities, *corners]) * 4, 200)

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = [f"C{index}" for index in range(len(devices))]
    for device, colour in zip(devices, colours, strict=True):
        used, peak = device.rate(main)
        roof = np.minimum(device.bandwidth * x, peak)
        note = f"{used}, {device.origin}"
        axes.loglog(x, roof / 1e9, color=colour, label=f"{device.name} ({note})")
        prediction = next(item for item in inspection.predictions if item.device is device)
        for stage, sums in stages.items():
            rates = [
                sums.operations / ms / 1e6 for ms in (prediction.stages[stage].low_ms, prediction.stages[stage].high_ms)
            ]
            axes.plot([sums.intensity] * 2, rates, color=colour, linewidth=1)
            axes.plot(sums.intensity, rates[0], _MARKERS[stage], color=colour, markersize=7, markeredgecolor="black")
    bottom, top = axes.get_ylim()
    levels = _label_levels(intensities)
    for (stage, sums), level in zip(stages.items(), levels, strict=True):
        axes.axvline(sums.intensity, color="grey", linewidth=0.6, linestyle=":")
        axes.text(sums.intensity, bottom * (top / bottom) ** (0.02 + 0.05 * level), f" {stage}", fontsize=9)
    axes.set_xlabel("arithmetic intensity (operations per byte of traffic)")
    axes.set_ylabel("10⁹ operations per second")
    axes.set_title(f"{inspection.policy}, mostly {main}: predicted rate of each stage under each device's roof")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    save_figure(figure, path)


def _plotted(inspection: Inspection) -> Sequence[Device]:
    """Return what was asked for; of a long list this machine and one board a family: more roofs cannot be distinguished."""
    devices = [item.device for item in inspection.predictions]
    if len(devices) <= _MOST_DEVICES:
        return devices
    return [item for item in devices if item.name.startswith("this-") or item.name in _FAMILIES] or devices[:_MOST_DEVICES]


def _label_levels(intensities: Sequence[float]) -> list[int]:
    """Return a height for each label, so that the names of stages with nearly the same intensity do not overlap."""
    levels = [0] * len(intensities)
    order = sorted(range(len(intensities)), key=lambda index: intensities[index])
    for before, after in itertools.pairwise(order):
        if intensities[after] < 1.6 * intensities[before]:
            levels[after] = levels[before] + 1
    return levels
