"""What was learned of a product, as files: data, text, tables over training, a curve and an animation."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nplex.algebra.fractions import Columns, ExactAlgorithm, formulas
from nplex.lab.checkpoint import write_json, write_tensors, write_text
from nplex.lab.environment import environment
from nplex.lab.plot import new_figure
from nplex.lab.recipes.rule_figures import animation, curves, shown
from nplex.lab.recipes.rule_learned import Learned, counted
from nplex.lab.recipes.rule_text import algorithm, beside, explained, rows
from nplex.lab.recipes.rules import RuleLearning
from nplex.lab.run_folder import LEARNED_CURVE, LEARNED_PAGE, LEARNED_TABLES, LEARNED_VIDEO, RESULT, SETTINGS
from nplex.stored_rules import LEARNED


def check_figures() -> None:
    """Looks before any work whether figures can be made.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    new_figure()


def note(folder: Path, recipe: RuleLearning, seeds: Sequence[int]) -> None:
    """Writes settings.json, by which the folder is known as one of ours."""
    write_json(folder / SETTINGS, {"learned": recipe.product, "settings": asdict(recipe), "seeds": list(seeds)})


def write(folder: Path, recipe: RuleLearning, learned: Sequence[Learned]) -> None:
    """Writes result.json, result.md, rule.safetensors, curve.png and tables.gif (of the first seed).

    Each file is written beside and renamed.

    Raises:
        ImportError: matplotlib is not installed; names the command.
    """
    tables = {f"{one.seed}/{m.step}": m.table for one in learned for m in shown(one.trail)}
    write_tensors(folder / LEARNED_TABLES, tables, {"holds": LEARNED, "product": recipe.product})
    curves(learned, folder / LEARNED_CURVE)
    animation(learned[0], folder / LEARNED_VIDEO)
    write_text(folder / LEARNED_PAGE, page(recipe, learned))
    write_json(folder / RESULT, {
        "recipe": asdict(recipe), "environment": environment(), "seeds": [as_json(one) for one in learned],
    })  # fmt: skip


def page(recipe: RuleLearning, learned: Sequence[Learned]) -> str:
    """The result as Markdown."""
    first = learned[0]
    parts = [
        f"# {headline(recipe, first)}",
        markdown_table(rows(learned)),
        explained(first),
        f"```text\n{beside(first)}\n```",
    ]
    if text := next(filter(None, map(algorithm, learned)), ""):
        parts.append(f"```text\n{text}\n```")
    parts.append(f"![error and loss over training]({LEARNED_CURVE})\n\n![the table over training]({LEARNED_VIDEO})")
    return "\n\n".join(parts) + "\n"


def headline(recipe: RuleLearning, one: Learned) -> str:
    """What was to be learned, from what, by what."""
    rank = "" if recipe.rank is None else f", {counted(recipe.rank, 'product')}"
    noise = "no noise" if recipe.noise == 0 else f"noise {recipe.noise:.3g}"
    block = "" if recipe.block == 1 else f" of {recipe.block} x {recipe.block} blocks"
    n = recipe.n or one.product.algebra.n
    examples = f"{counted(recipe.examples, 'example')}{block}"
    return f"{one.product.algebra.name}, n = {n}{rank}: {examples}, {noise}, {one.product.said}"


def as_json(one: Learned) -> dict[str, Any]:
    """A seed's result as JSON data."""
    names = (
        "seed", "error", "whole_error", "determined", "optimum", "undetermined", "surplus", "loss", "least_loss",
        "steps", "starts", "seconds", "verdict",
    )  # fmt: skip
    norm = one.true.norm()
    return {name: getattr(one, name) for name in names} | {
        "true": one.true.tolist(),
        "table": one.table.tolist(),
        "curve": [
            {"step": m.step, "loss": m.loss, "error": float((m.table - one.true).norm() / norm)} for m in one.trail
        ],
        "algorithm": None if one.algorithm is None else {k: v.tolist() for k, v in one.algorithm._asdict().items()},
        "exact": None if one.exact is None else _fractions(one.exact),
    }


def _fractions(exact: ExactAlgorithm) -> dict[str, Any]:
    """Columns of fractions as text, and the formulas."""

    def columns(of: Columns) -> list[list[str]]:
        return [[str(c) for c in column] for column in of]

    names = ("encode_component", "encode_input", "decode")
    return {name: columns(getattr(exact, name)) for name in names} | {"formulas": formulas(exact).splitlines()}
