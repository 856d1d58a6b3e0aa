"""The table and the figure of benchmarks/budgets.py, from its JSON alone."""

import math
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter
from scipy.stats import t

from nplex.lab import plot

AXES = {"flops": "training FLOPs", "blocks": "parameters of the blocks", "seconds": "training, seconds"}
MARKERS = {"": "o", "parameters": "s", "FLOPs": "^"}
COUNTED = """
Parameters are those of the blocks: layers, rules, biases, norms. FLOPs are those of matmuls, forward and backward:
6 a weight and byte in layers without a rule and in the output head, as torch's FlopCounterMode counts them too,
which the program checks; in layers with a rule nplex.ops.plan_for's count of the bilinear method, with its building,
its mixing and what it makes again; 12 x length x width a byte and block for attention. Seconds are those
of a training step, the median of nine in turns with all other models, times the steps; each layer by the method that
the plan takes, which in narrow layers may be the dense one. The last
column compares with dense models of the same seconds, interpolated.
""".strip().replace("\n", " ")
HEAD = (
    "family", "equal in", "width", "parameters", "of dense", "TFLOP", "of dense", "seconds", "rate", "loss, nats",
    "to dense", "to dense of the same seconds",
)  # fmt: skip


def page(found: dict) -> str:
    """A table for each budget, who is lowest, and how it was counted."""
    dense, bases = found["dense"], sorted({p["base"] for p in found["compared"] if p["equal"]})
    parts = [lead(found)]
    for base in bases:
        reference = means(found, dense, base)
        compared = [p for p in found["compared"] if p["base"] == base]
        rows = [(p, means(found, p["family"], p["width"])) for p in compared]
        table = [list(HEAD), ["---", "---", *["---:"] * (len(HEAD) - 2)]]
        table += [line(found, point, row, reference) for point, row in rows]
        parts.append(f"## As dense of width {base}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in table))
        parts.append("\n".join(lowest(rows, reference, equal) for equal in ("parameters", "FLOPs")))
    return "\n\n".join([*parts, foot(found)])


def means(found: dict, family: str, width: int) -> dict[str, Any]:
    """A model's figures: means over seeds where these differ."""
    rows = [row for row in found["models"] if (row["family"], row["width"]) == (family, width)]
    return rows[0] | {
        "test": statistics.mean(row["test"] for row in rows),
        "seconds": statistics.mean(row["seconds"] for row in rows),
        "tests": [row["test"] for row in rows],
    }


def line(found: dict, point: dict, row: dict, reference: dict) -> list[str]:
    """A row of the table."""
    same = dense_at(found, "seconds", row["seconds"])
    return [
        point["family"], point["equal"] or "-", str(row["width"]),
        f"{row['blocks']:,}", f"{row['blocks'] / reference['blocks']:.2f}",
        f"{row['flops'] / 1e12:.2f}", f"{row['flops'] / reference['flops']:.2f}",
        f"{row['seconds']:.0f}", f"{row['rate']:.2e}", f"{row['test']:.4f}", difference(row, reference),
        "-" if same is None else f"{row['test'] - same:+.4f}",
    ]  # fmt: skip


def difference(row: dict, reference: dict) -> str:
    """The mean difference over the seeds, and half of its 95 % interval."""
    found = [ours - theirs for ours, theirs in zip(row["tests"], reference["tests"], strict=True)]
    shown = f"{statistics.mean(found):+.4f}"
    if len(found) > 1:
        shown += f" ± {t.ppf(0.975, len(found) - 1) * statistics.stdev(found) / math.sqrt(len(found)):.4f}"
    return shown


def dense_at(found: dict, axis: str, value: float) -> float | None:
    """The loss of a dense model of this size, between those that were trained; None outside."""
    widths = {p["width"] for p in found["compared"] if p["family"] == found["dense"]}
    rows = sorted((means(found, found["dense"], width) for width in widths), key=lambda row: row[axis])
    for small, large in pairwise(rows):
        if small[axis] <= value <= large[axis]:
            part = math.log(value / small[axis]) / math.log(large[axis] / small[axis])
            return small["test"] + part * (large["test"] - small["test"])
    return None


def lowest(rows: list[tuple[dict, dict]], reference: dict, equal: str) -> str:
    """Which family has the lowest loss at equal something, and where dense stands."""
    losses = {point["family"]: row["test"] for point, row in rows if point["equal"] == equal}
    best = min(losses, key=losses.__getitem__)
    below = [family for family, loss in losses.items() if loss < reference["test"]]
    told = f"below dense: {'; '.join(below)}" if below else "none is below dense"
    dense = reference["test"]
    return f"- Equal {equal}: lowest of the others is {best} ({losses[best]:.4f}; dense {dense:.4f}); {told}."


def lead(found: dict) -> str:
    """What was trained, and how it was counted."""
    edges = sorted({
        f"{m['family']} {m['width']} ({m['rate']:.2e})" for m in found["models"]
        if m["rate"] in (min(m["tuning"]), max(m["tuning"]))
    })  # fmt: skip
    seeds = len({row["seed"] for row in found["models"]})
    return (
        f"Language models on the bytes of Python's standard library, 2 blocks, 4 heads, feed-forward 4 times the "
        f"width: {found['steps']:,} steps each, {found['models'][0]['bytes']:,} bytes, {seeds} seed(s). Loss: nats a "
        f"byte on the test part. Rate: the best on the dev part with the first seed, of rates a factor of sqrt(2) "
        f"apart, so many that it is not at an end of them{f' (but for {chr(59).join(edges)})' if edges else ''}. To "
        f"dense: the mean of the differences seed by seed, and its 95 % interval (Student's t).\n\n{COUNTED}"
    )


def foot(found: dict) -> str:
    """Versions and machine."""
    env, seconds = found["environment"], sum(row["seconds"] for row in found["models"])
    return (
        f"{len(found['models'])} models, {seconds / 60:.0f} minutes of training without the runs that chose rates. "
        f"nplex {', '.join(found['commits'])}, torch {env['torch']}, {env['processor']}, one thread, {env['date']}."
    )


def figure(found: dict, path: Path) -> None:
    """Three panels: loss against FLOPs, parameters, seconds; a line for each family, dense in black."""
    drawn = plot.new_figure(13.5, 4.6)
    families = list(dict.fromkeys(p["family"] for p in found["compared"]))
    for axes, (axis, name) in zip(drawn.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True):
        for index, family in enumerate(families):
            color = "black" if family == found["dense"] else f"C{index - 1}"
            chosen = [p for p in found["compared"] if p["family"] == family]
            rows = sorted(((means(found, family, p["width"]), p) for p in chosen), key=lambda pair: pair[0][axis])
            style = "-" if "=" in family or family == found["dense"] else "--"
            axes.plot([r[axis] for r, _ in rows], [r["test"] for r, _ in rows], style, color=color, lw=1.2)
            for row, point in rows:
                marker = MARKERS[point["equal"]]
                axes.scatter([row[axis]] * len(row["tests"]), row["tests"], s=26, color=color, marker=marker)
            axes.plot([], [], style, color=color, label=family)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("e+", "e"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(name)
        axes.grid(alpha=0.25, which="both")
    drawn.axes[0].set_ylabel("test loss, nats a byte")
    drawn.axes[1].set_title("squares: parameters equal to a dense model's; triangles: FLOPs equal", fontsize=9)
    drawn.legend(*drawn.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize=8)
    plot.save(drawn, path)
