"""Record of the search for a mixed plan: the evidence on every block, and a picture of it."""

from __future__ import annotations

from pathlib import Path

from rfedge.export.mixed.blocks import kept_float
from rfedge.io.plotting import check_matplotlib, save_figure
from rfedge.records.record import Record


class BlockEvidence(Record):
    """Why a block computes in what it does."""

    precision: str
    reason: str
    saved_ms: float  # of one backbone call on the machine that exported; negative where int8 is slower
    metrics: dict[str, float]  # of the policy with this block alone in int8, against fp32


class SearchRecord(Record):
    """mixed.json."""

    budget_metric: str
    budget: float
    num_steps: int
    blocks: dict[str, BlockEvidence]
    metrics: dict[str, float]
    int8_metrics: dict[str, float]  # of the precision int8 with its defaults, on the same episodes
    uniform_metrics: dict[str, float]  # of int8 in every block
    time_ratios: dict[str, float]  # medians of a whole backbone call in turns, such as "mixed/int8"
    num_measured: int
    num_reused: int  # measured by earlier runs

    @property
    def keep_float(self) -> tuple[str, ...]:
        return kept_float(self.blocks, [name for name, block in self.blocks.items() if block.precision == "int8"])


_COLOURS = {"int8": "C0", "fp32": "C7"}


def default_chart(bundle: Path) -> Path:
    """Return where the picture for a bundle goes by default: beside it, where its search keeps what it measured."""
    return bundle.with_name(bundle.name + ".search") / "sensitivity.png"


def draw_sensitivity(record: SearchRecord, path: Path) -> None:
    """Draw two bars a block: the mean action error of int8 in it alone, and the milliseconds it saves."""
    check_matplotlib("--chart")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names = list(record.blocks)[::-1]  # the first block on top
    blocks = [record.blocks[name] for name in names]
    colours = [_COLOURS[block.precision] for block in blocks]
    figure = Figure(figsize=(11, 1.8 + 0.26 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    error, saved = figure.subplots(1, 2, sharey=True)
    error.barh(names, [block.metrics["action_mean_error"] for block in blocks], color=colours)
    error.plot([block.metrics["action_max_error"] for block in blocks], names, "k|", markersize=8)
    error.set_xscale("symlog", linthresh=1e-4)
    error.set_xlim(left=0)
    error.set_xlabel("action error of int8 in this block alone\n(bar: mean, line: largest; 1.0 is 20 mm or 0.05 rad)")
    saved.barh(names, [block.saved_ms for block in blocks], color=colours)
    saved.axvline(0, color="black", linewidth=0.8)
    saved.set_xlabel("milliseconds saved by int8 in a backbone call")
    saved.legend(handles=[Patch(color=colour, label=name) for name, colour in _COLOURS.items()], title="in the plan")
    for axes in (error, saved):
        axes.tick_params(labelsize=8)
        axes.grid(visible=True, axis="x", alpha=0.3)
        axes.margins(y=0.01)
    figure.suptitle(
        f"{record.budget_metric} {record.metrics[record.budget_metric]:.4f} of {record.budget:g} "
        f"(int8 {record.int8_metrics[record.budget_metric]:.4f}, "
        f"int8 in every block {record.uniform_metrics[record.budget_metric]:.4f})\n"
        f"time {record.time_ratios['mixed/int8']:.2f} of int8, {record.time_ratios['mixed/uniform']:.2f} of int8 in every "
        f"block, {record.time_ratios['mixed/fp32']:.2f} of fp32",
        fontsize=11,
    )
    save_figure(figure, path)
