"""The figure of a search: a row for each rule, a panel for each goal."""

from pathlib import Path

from nplex.lab.plot import new_figure, save
from nplex.lab.tuning.pareto import GOALS, Pareto

COLOURS = {"take this": "C3", "Pareto front": "C0", "beaten by another rule": "0.7"}


def draw(result: Pareto, path: Path) -> None:
    """Rules from the smallest to the largest, their size, score and seconds, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    from matplotlib.ticker import EngFormatter

    rows, goals = result.rows, result.goals.which
    figure = new_figure(2.0 + 2.4 * len(goals), 1.7 + 0.25 * len(rows))
    panels = figure.subplots(1, len(goals), sharey=True, squeeze=False)[0]
    better = "lower" if result.goals.lower else "higher"
    units = {"quality": f", {better} is better,\nwith its 95 % interval", "speed": f" for {result.unit}"}
    for goal, axes in zip(goals, panels, strict=True):
        for height, row in enumerate(rows):
            found = row.measured
            kind = "take this" if row == result.recommended else list(COLOURS)[1 if row.pareto else 2]
            axes.scatter(getattr(found, GOALS[goal]), height, s=30, color=COLOURS[kind], zorder=2, label=kind)
            if goal == "quality" and found.low is not None and found.high is not None:
                axes.plot([found.low, found.high], [height, height], color=COLOURS[kind], linewidth=1.5, alpha=0.6)
        if result.dense:
            axes.axvline(getattr(result.dense, GOALS[goal]), color="0.4", linestyle=":", label="dense")
        axes.set_xlim(left=None if goal == "quality" else 0)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_xlabel(GOALS[goal] + units.get(goal, ""))
        axes.grid(alpha=0.25)
    panels[0].set_yticks(range(len(rows)), [row.rule for row in rows])
    panels[0].set_ylabel("rule: n, or n:rank")
    handles, labels = panels[0].get_legend_handles_labels()
    named = dict(zip(labels, handles, strict=True))
    figure.legend(named.values(), named, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{result.task}: {len(rows)} rules measured", fontsize=10)
    save(figure, path)
