"""What was learned of a product: as text, as files, as a curve."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nplex.algebra import Algebra, additions, formulas
from nplex.files import write_json, write_tensors, write_text
from nplex.lab.environment import environment
from nplex.lab.plot import new_figure, save
from nplex.lab.products.learned import Learned, RuleLearning
from nplex.lab.run_folder import LEARNED_CURVE, LEARNED_PAGE, LEARNED_TABLES, RESULT
from nplex.lab.summary import markdown_table
from nplex.stored_rules import LEARNED

# Wider tables are not printed; a learned one has so many digits behind the point. Smaller errors are drawn at LOWEST.
WIDEST, DIGITS, LOWEST = 170, 2, 1e-16
TITLES = ["seed", "error", "optimum", "determined", "steps", "outcome"]


def headline(recipe: RuleLearning, one: Learned) -> str:
    """The product, the rule, the examples."""
    noise = "no noise" if recipe.noise == 0 else f"noise {recipe.noise:.3g}"
    rank = "" if recipe.rank is None else f", rank {recipe.rank}"
    name = one.product.algebra.name
    return f"{name}, n = {one.size}{rank}: {recipe.examples:,} examples, {noise}, {one.product.factors}"


def rows(learned: Sequence[Learned]) -> list[list[str]]:
    """A table of one row a seed, titles first."""
    return [TITLES, *(
        [
            str(one.seed), f"{one.error:.1e}", f"{one.optimum:.1e}",
            f"{one.determined} of {one.true.numel()}", f"{one.trail[-1].step:,}", one.verdict,
        ]
        for one in learned
    )]  # fmt: skip


def explained(learned: Sequence[Learned]) -> str:
    """A learned table beside the true one, what the numbers of the rows mean, and an algorithm if there is one."""
    one = next((each for each in learned if each.exact), learned[0])
    lines = [
        *_tables(one), "",
        "error: relative to the true table, of what the examples determine; optimum: that of the least-squares table",
    ]  # fmt: skip
    if one.determined < (total := one.true.numel()):
        lines.append(f"the examples determine {one.determined} of the {total} numbers; the rest is learned as 0")
    if one.exact is not None:
        units = ", ".join(one.product.algebra.units)
        lines += [
            "", f"x and y are the factors, z = x * y, numbered from 0 as {units}", formulas(one.exact),
            f"products: {one.exact.rank}, additions: {additions(one.exact)}; "
            f"all {total} entries checked in fractions",
        ]  # fmt: skip
    return "\n".join(lines)


def write(folder: Path, recipe: RuleLearning, learned: Sequence[Learned]) -> None:
    """Writes result.json, result.md, rule.safetensors (the table over training) and curve.png.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    tables = {f"{one.seed}/{moment.step}": moment.table for one in learned for moment in one.trail}
    write_tensors(folder / LEARNED_TABLES, tables, {"holds": LEARNED, "product": recipe.product})
    curve(learned, folder / LEARNED_CURVE)
    title, table = f"# {headline(recipe, learned[0])}", markdown_table(rows(learned))
    text = f"```text\n{explained(learned)}\n```"
    write_text(folder / LEARNED_PAGE, f"{title}\n\n{table}\n\n{text}\n\n![error over training]({LEARNED_CURVE})\n")
    seeds = [_as_json(one) for one in learned]
    write_json(folder / RESULT, {"recipe": asdict(recipe), "environment": environment(), "seeds": seeds})


def curve(learned: Sequence[Learned], path: Path) -> None:
    """The error of the table over the steps, one line a seed, with the optimum of the first, as a PNG.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    figure, first = new_figure(), learned[0]
    axes = figure.add_subplot()
    for one in learned:
        errors = [max(moment.error, LOWEST) for moment in one.trail]
        axes.plot([moment.step for moment in one.trail], errors, label=f"seed {one.seed}")
    axes.axhline(max(first.optimum, LOWEST), linestyle="--", color="0.5", label=f"least squares, seed {first.seed}")
    axes.set_yscale("log")
    axes.set_xlabel("step of L-BFGS")
    axes.set_ylabel("relative error of the table")
    name = f"{first.product.algebra.name} by a rule of n = {first.size}"
    axes.set_title(f"{name}: error of the learned table over training", fontsize=9)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=1 + len(learned) // 10)
    save(figure, path)


def _as_json(one: Learned) -> dict[str, Any]:
    numbers = ("seed", "error", "determined", "optimum", "verdict")
    algorithm, columns = one.search and one.search.algorithm._asdict(), ("encode_component", "encode_input", "decode")
    return {name: getattr(one, name) for name in numbers} | {
        "true": one.true.tolist(),
        "table": one.table.tolist(),
        "curve": [{"step": each.step, "loss": each.loss, "error": each.error} for each in one.trail],
        "algorithm": algorithm and {name: factor.tolist() for name, factor in algorithm.items()},
        "exact": one.exact and {
            "formulas": formulas(one.exact).splitlines(),
            **{name: [list(map(str, column)) for column in getattr(one.exact, name)] for name in columns},
        },
    }  # fmt: skip


def _tables(one: Learned) -> list[str]:
    """The true table and the learned one side by side, and their largest difference."""
    units, more = one.product.algebra.units, max(0, one.size - one.product.algebra.n)
    names = [*units, *(f"({len(units) + k})" for k in range(more))]
    near = (one.table * 10**DIGITS).round() / 10**DIGITS + 0.0
    printed = (Algebra.from_table(table, units=names).multiplication_table() for table in (one.true, near))
    true, found = (
        [f"  {title}", *text.splitlines()] for title, text in zip(("true", "learned"), printed, strict=True)
    )
    width = max(map(len, true)) + 4
    lines = [f"{left:<{width}}{right}".rstrip() for left, right in zip(true, found, strict=True)]
    if max(map(len, lines)) > WIDEST:
        lines = ["the tables are too wide for text; --out DIR writes them"]
    return [*lines, f"largest difference of an entry: {float((one.table - one.true).abs().max()):.1e}"]
