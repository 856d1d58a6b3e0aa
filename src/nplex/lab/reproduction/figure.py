"""A reproduced table as a figure: points above and below dense, ours and the paper's."""

from pathlib import Path
from typing import TYPE_CHECKING

from nplex.lab.plot import new_figure, rule_name, save

if TYPE_CHECKING:
    from nplex.lab.reproduction.page import Reproduced


def picture(done: "Reproduced", path: Path) -> None:
    """Differences to dense: ours with the paired bootstrap's 95 % interval, the paper's beside, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    figure = new_figure(6.4, 0.62 * len(done.differences) + 1.9)
    axes = figure.add_subplot()
    dense = next(line for line in done.summary.lines if line.rule == "dense")
    shares = {line.rule: line.share for line in done.summary.lines}
    published = done.part.published("dense")
    for position, (rule, found) in enumerate(done.differences.items()):
        ends = [[found.mean - found.low], [found.high - found.mean]]
        label = "ours, 95 % interval" if position == 0 else None
        axes.errorbar(found.mean, position - 0.1, xerr=ends, fmt="o", color="C0", capsize=4, label=label)
        theirs = done.part.published(rule)
        if theirs is not None and published is not None:
            label = f"the paper's, {done.part.column}" if position == 0 else None
            axes.scatter(
                theirs - published, position + 0.14, marker="D", facecolors="none", edgecolors="C1", label=label
            )
    axes.axvline(0, color="0.4", linewidth=1)
    names = [f"{rule_name(rule)}\n{shares[rule]:.0%} of the parameters" for rule in done.differences]
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.invert_yaxis()
    axes.margins(y=0.2)
    axes.set_xlabel(f"{done.part.table.score}, points above dense")
    theirs = "" if published is None else f"; the paper's {published:.2f}"
    axes.set_title(f"{done.name}: dense has {dense.score:.2f}{theirs}", fontsize=9)
    axes.legend(fontsize=8, loc="best")
    axes.grid(alpha=0.25, axis="x")
    save(figure, path)
