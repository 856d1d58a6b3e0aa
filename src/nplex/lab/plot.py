"""Figures of runs."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from nplex.figures import new_figure
from nplex.figures import write_figure as save
from nplex.lab.summary import NAMES, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparison(summary: Summary, path: Path) -> None:
    """The main score with its 95 % interval against the layers' parameters, and the baseline, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    figure = new_figure()
    axes = figure.add_subplot()
    for line, x in zip(summary.lines, _positions(summary), strict=True):
        mean = line.score
        axes.scatter([x * 1.05] * len(line.seeds), line.seeds, s=14, c="0.55")
        error = [[max(mean - line.low, 0)], [max(line.high - mean, 0)]]
        axes.errorbar(x, mean, yerr=error, fmt="o", capsize=5, markersize=7)
        top = max(line.high, *line.seeds)
        axes.annotate(rule_name(line.rule), (x, top), (0, 8), textcoords="offset points", ha="center")
    _axes(axes, summary)
    save(figure, path)


def _positions(summary: Summary) -> list[float]:
    """Parameters in thousands; rules of nearly as many stand side by side, so that both can be read."""
    positions: list[float] = []
    for line in summary.lines:
        x = line.layer_parameters / 1e3
        while any(abs(x / other - 1) < 0.15 for other in positions):
            x *= 1.18
        positions.append(x)
    return positions


def rule_name(rule: str) -> str:
    """A rule as a figure names it: `4` is n = 4, `4:7` is n = 4 at rank 7."""
    n, colon, rank = rule.partition(":")
    return rule if not n.isdecimal() else f"n = {n}, rank {rank}" if colon else f"n = {n}"


def _axes(axes: "Axes", summary: Summary) -> None:
    """Scales, names, and the baseline: as a line where it is near, else in words."""
    values = [value for line in summary.lines for value in (line.low, line.high, *line.seeds)]
    margin = 1.5 if summary.kind in ("accuracy", "bleu") else 0.15 * (max(values) - min(values)) + 0.01
    bottom, top = min(values) - margin, max(values) + margin
    name, scores = summary.baseline
    base = next(iter(scores.values()), math.nan)
    axes.set_ylim(bottom, top)
    if bottom < base < top:
        axes.axhline(base, linestyle="--", color="0.5")
    axes.set_xscale("log")
    axes.margins(x=0.12)
    ticks = sorted({round(line.layer_parameters / 1e3) for line in summary.lines})
    axes.set_xticks(ticks, [f"{tick:,}K" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the converted layers (rules of nearly as many side by side)")
    axes.set_ylabel(f"{NAMES[summary.kind]}, {summary.examples:,} test examples")
    title = f"{summary.task}: mean, 95 % interval, seeds in grey" + f"\n{name}: {base:.1f}" * bool(scores)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.25)
