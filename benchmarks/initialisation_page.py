"""The table and the figure of benchmarks/initialisation.py, from its JSON alone."""

import math
import statistics
from pathlib import Path

from nplex.lab import plot
from nplex.lab.summary import DIGITS, NAMES


def page(found: dict) -> str:
    """The dev scores, a row for each value of each factor, and what they were measured on."""
    (name, digits), sizes, seeds, noise = dev_score(found), found["sizes"], len(found["seeds"]), found["noise"]
    clear = math.inf if noise is None else 2 * noise * math.sqrt(2 / seeds)
    base = {row["n"]: statistics.mean(row["dev"]) for row in found["rows"] if row["default"]}
    tested = [f"n = {n}: test {NAMES[found['kind']]}" for n in sizes if name != NAMES[found["kind"]]]
    head = ["factor", "value", *(f"n = {n}" for n in sizes), *tested]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for factor, values in factors(found).items():
        for value in values:
            rows = rows_of(found, factor, value)
            tests = [f"{statistics.mean(row['test']):.2f}" for row in rows if tested]
            lines.append([factor, value, *(cell(row, base, clear, digits) for row in rows), *tests])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    spread = "One seed, so the deviation between seeds is not known."
    if noise is not None:
        spread = (
            f"Two runs that differ only in the seed deviate by {noise:.{digits}f} (pooled over all variants); "
            f"differences of more than {clear:.{digits}f}, twice what such a difference deviates by, are bold."
        )
    env, short = found["environment"], f" of {found['steps']} steps" if found["steps"] else ""
    return (
        f"{found['task']} {found['set']}".strip() + f": {name} on the dev part after "
        f"{found['epochs']} epoch(s){short}, mean of {seeds} seed(s); in brackets the difference to the default "
        f"(scale 1, rate 1, random start, no decay, full rule).\n\n{table}\n\n{spread} {found['runs']} runs, "
        f"{found['seconds'] / 60:.0f} minutes of training. nplex {', '.join(found['commits'])}, torch "
        f"{env['torch']}, {env['date']}. Runs on {'; '.join(found['machines'])}."
    )


def dev_score(found: dict) -> tuple[str, int]:
    """What the dev part is scored by, and with how many digits: tasks that write text have nats there."""
    kind = found["kind"]
    return (f"{found['score']} a subword", 3) if kind == "bleu" else (NAMES[kind], DIGITS[kind])


def factors(found: dict) -> dict[str, list[str]]:
    """The values of each factor, in the order of the rows."""
    every: dict[str, dict[str, None]] = {}
    for row in found["rows"]:
        every.setdefault(row["factor"], {})[row["value"]] = None
    return {factor: list(values) for factor, values in every.items()}


def rows_of(found: dict, factor: str, value: str) -> list[dict]:
    """The rows of one value, one for each n."""
    return [row for row in found["rows"] if (row["factor"], row["value"]) == (factor, value)]


def cell(row: dict, base: dict[int, float], clear: float, digits: int) -> str:
    """A mean and its difference to the default."""
    mean = statistics.mean(row["dev"])
    if row["default"]:
        return f"{mean:.{digits}f}"
    difference = mean - base[row["n"]]
    shown = f"{mean:.{digits}f} ({difference:+.{digits}f})"
    return f"**{shown}**" if abs(difference) > clear else shown


def figure(found: dict, path: Path) -> None:
    """A panel for each factor: the score of each value, a line for each n, seeds as dots."""
    panels = factors(found)
    drawn = plot.new_figure(13.5, 3.8)
    for axes, (factor, values) in zip(drawn.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        for index, n in enumerate(found["sizes"]):
            rows = [row for value in values for row in rows_of(found, factor, value) if row["n"] == n]
            means, color = [statistics.mean(row["dev"]) for row in rows], f"C{index}"
            axes.plot(values, means, marker="o", markersize=5, color=color, label=f"n = {n}")
            for row in rows:
                axes.scatter([row["value"]] * len(row["dev"]), row["dev"], s=12, color=color, alpha=0.4)
        axes.set_title(factor, fontsize=9)
        axes.tick_params(axis="x", labelsize=8, rotation=20 if max(map(len, values)) > 8 else 0)
        axes.grid(alpha=0.25)
        axes.margins(x=0.12)
    first = drawn.axes[0]
    first.set_ylabel(f"{found['task']}: {dev_score(found)[0]}, dev part")
    drawn.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    plot.save(drawn, path)
