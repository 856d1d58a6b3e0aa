"""Figures of runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from nplex.summary import Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparison(summary: Summary, path: Path) -> None:
    """Accuracy with its 95 % interval against the layers' parameters, and what the majority baseline is, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib, which is not installed: pip install 'nplex[train]'") from None
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for line in summary.lines:
        place, mean = line.layer_parameters / 1e3, 100 * line.accuracy["all"]
        axes.scatter([place * 1.05] * len(line.seeds), [100 * seed for seed in line.seeds], s=14, c="0.55")
        error = [[mean - 100 * line.low], [100 * line.high - mean]]
        axes.errorbar(place, mean, yerr=error, fmt="o", capsize=5, markersize=7)
        name = f"n = {line.rule}" if line.rule.isdecimal() else line.rule
        axes.annotate(
            name, (place, 100 * max(line.high, *line.seeds)), (0, 8), textcoords="offset points", ha="center"
        )
    _axes(axes, summary)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=150, format="png")
    part.replace(path)


def _axes(axes: "Axes", summary: Summary) -> None:
    """Scales, names, and the majority baseline: as a line where it is near, else in words."""
    values = [100 * value for line in summary.lines for value in (line.low, line.high, *line.seeds)]
    bottom, top = min(values) - 1.5, max(values) + 1.5
    majority = 100 * summary.majority["all"]
    axes.set_ylim(bottom, top)
    if bottom < majority < top:
        axes.axhline(majority, linestyle="--", color="0.5")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    ticks = sorted({round(line.layer_parameters / 1e3) for line in summary.lines})
    axes.set_xticks(ticks, [f"{tick}K" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the converted layers")
    axes.set_ylabel(f"accuracy on {summary.examples:,} test examples, %")
    title = f"Subject-verb agreement: mean, 95 % interval, seeds in grey\nalways the commoner label: {majority:.1f} %"
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.25)
