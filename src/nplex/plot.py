"""Figures of runs."""

from pathlib import Path

from nplex.summary import Summary


def comparison(summary: Summary, path: Path) -> None:
    """Accuracy with its 95 % interval against the layers' parameters, and the majority baseline, as a PNG.

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
        mean = 100 * line.accuracy["all"]
        low, high = mean - 100 * line.low, 100 * line.high - mean
        axes.errorbar(line.layer_parameters / 1e3, mean, yerr=[[low], [high]], fmt="o", capsize=4, markersize=7)
        axes.annotate(line.rule, (line.layer_parameters / 1e3, mean), (9, 6), textcoords="offset points")
        axes.scatter([line.layer_parameters / 1e3] * len(line.seeds), [100 * s for s in line.seeds], s=9, c="0.6")
    axes.axhline(100 * summary.majority["all"], linestyle="--", color="0.5", label="majority baseline")
    axes.set_xscale("log")
    ticks = sorted({round(line.layer_parameters / 1e3) for line in summary.lines})
    axes.set_xticks(ticks, [f"{tick}K" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("parameters of the converted layers")
    axes.set_ylabel(f"accuracy on {summary.examples:,} test examples, %")
    axes.set_title("Subject-verb agreement: mean of seeds (grey), 95 % interval", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="center right")
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=150, format="png")
    part.replace(path)
