"""The figure of a search: quality against size, speed as colour."""

from pathlib import Path
from typing import TYPE_CHECKING

from nplex.lab.plot import new_figure, save
from nplex.lab.tuning.front import Front, Row
from nplex.lab.tuning.measured import Measured

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINE = 0.08  # of the height, between two names at the same place
SAME = 1.04
NEAR = 1.25


def picture(front: Front, path: Path) -> None:
    """Score with its 95 % interval against parameters, seconds as colour, the front ringed, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    found = {row: row.measured for row in front.rows if row.measured}
    axes.set_xscale("log")
    if found:
        _points(axes, front, found)
        axes.margins(x=0.12, y=0.16)
        _labels(axes, front, {row: m for row, m in found.items() if row.front or row == front.dense})
        ticks = _apart(sorted({float(m.parameters or 1) for m in found.values()}))
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        axes.legend(loc="best", fontsize=8, framealpha=0.9, markerscale=0.6)
    axes.minorticks_off()
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"score, {'lower' if front.goals.lower else 'higher'} is better")
    axes.set_title(f"{front.task}: {len(found)} rules measured; bars are 95 % intervals", fontsize=9)
    axes.grid(alpha=0.25)
    save(figure, path)


def _points(axes: "Axes", front: Front, found: dict[Row, Measured]) -> None:
    """The band that counts as equal to dense, a point for each rule, rings for the front and the chosen one."""
    if front.dense is not None and front.dense.measured is not None:
        dense, allowed = front.dense.measured, front.goals.allowance(front.dense.measured)
        own = front.goals.margin is None and dense.low is not None and dense.high is not None
        low, high = (dense.low, dense.high) if own else (dense.score - allowed, dense.score + allowed)
        axes.axhspan(low or 0.0, high or 0.0, color="C0", alpha=0.08, label="as good as dense")
    for measured in found.values():
        if measured.low is not None and measured.high is not None:
            ends = [[max(measured.score - measured.low, 0)], [max(measured.high - measured.score, 0)]]
            axes.errorbar(measured.parameters or 1, measured.score, yerr=ends, color="0.75", capsize=3, zorder=1)
    places = [float(m.parameters or 1) for m in found.values()]
    scores, seconds = [m.score for m in found.values()], [m.seconds or 0.0 for m in found.values()]
    points = axes.scatter(places, scores, c=seconds, s=46, cmap="viridis_r", zorder=2)
    bar = axes.figure.colorbar(points, ax=axes)
    bar.set_label(f"seconds for {front.unit}" if front.unit else "seconds")
    best = [m for row, m in found.items() if row.front]
    ring = {"facecolors": "none", "zorder": 3}
    axes.scatter(
        [m.parameters or 1 for m in best], [m.score for m in best], s=110, edgecolors="0.2", label="front", **ring
    )
    chosen = front.recommended
    if chosen is not None and chosen.measured is not None:
        place = chosen.measured.parameters or 1
        axes.scatter(
            [place], [chosen.measured.score], s=220, edgecolors="C3", linewidths=2, label="take this", **ring
        )


def _labels(axes: "Axes", front: Front, found: dict[Row, Measured]) -> None:
    """Names aslant above the intervals; where several sizes are nearly the same, one above the other."""
    step = LINE * (axes.get_ylim()[1] - axes.get_ylim()[0])
    last, height = 0.0, 0.0
    for row, measured in sorted(found.items(), key=lambda pair: (pair[1].parameters or 1, pair[1].score)):
        place, top = float(measured.parameters or 1), measured.score if measured.high is None else measured.high
        height = max(top, height + step) if place < last * SAME else top
        last = place
        axes.annotate(
            row.candidate.key, (place, height), (2, 5), textcoords="offset points", rotation=70, fontsize=8,
            rotation_mode="anchor", fontweight="bold" if row == front.recommended else "normal",
        )  # fmt: skip


def _apart(sizes: list[float]) -> list[float]:
    """Of sizes, those far enough from the one before for a label of its own."""
    kept: list[float] = []
    for size in sizes:
        if not kept or size > kept[-1] * NEAR:
            kept.append(size)
    return kept


def _short(size: float) -> str:
    """A number of parameters in a few letters."""
    return f"{size / 1e6:.3g}M" if size >= 1e6 else f"{size / 1e3:.3g}K" if size >= 1e3 else f"{size:.0f}"
