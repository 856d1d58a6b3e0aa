"""Learns known products from examples: tables, algorithms, wrong n, few examples; how often, how well, how fast.

    python benchmarks/rules.py           # a quarter of an hour; writes benchmarks/results/rules.*
    python benchmarks/rules.py --quick   # few of each, to see that it runs; writes nothing

One thread, 1,000 examples where nothing else is said. Each row is of many seeds; the worst of them is told.
"""

import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import track

from nplex.algebra.fractions import additions, formulas
from nplex.lab.checkpoint import write_json
from nplex.lab.environment import environment
from nplex.lab.recipes.rule_learned import Learned
from nplex.lab.recipes.rules import RuleLearning, learn

TABLES = (
    "real", "complex", "quaternion", "octonion", "rotation", "rotation-pure", "rotation-axis", "rotation-real",
    "clifford(2,0)", "clifford(3,0)", "cyclic(5)", "matrices(2)", "random(4)", "sedenion", "matrices(3)",
)  # fmt: skip
ALGORITHMS = (("complex", 3), ("quaternion", 8), ("matrices(2)", 7))
FAILING = (("complex", 2), ("quaternion", 7), ("matrices(2)", 6))
OTHERS = (
    *(RuleLearning("quaternion", n) for n in (1, 2, 3, 5, 8)), *(RuleLearning("octonion", n) for n in (4, 7)),
    *(RuleLearning("octonion", examples=count) for count in (20, 64, 70, 100)), RuleLearning("real", block=4),
    RuleLearning("quaternion", block=4, examples=100),
)  # fmt: skip
TOLERANCE, NOISE, TIMES = 1e-5, 0.01, 3.0
RESULTS = Path(__file__).parent / "results"
console = Console(stderr=True)


def main(quick: bool = typer.Option(False, help="A smoke test: one seed of few products, nothing written.")) -> None:
    """Learn, print the tables, and write them with all figures as JSON."""
    torch.set_num_threads(1)
    of_tables, of_algorithms = (range(1), range(1)) if quick else (range(10), range(20))
    names, others = (TABLES[:4], OTHERS[:1]) if quick else (TABLES, OTHERS)
    tables = [table_row(name, of_tables) for name in track(names, "tables", console=console)]
    algorithms = [
        algorithm_row(RuleLearning(name, rank=rank, noise=noise), of_algorithms)
        for noise in (0.0, NOISE) for name, rank in track(ALGORITHMS, f"algorithms, noise {noise}", console=console)
    ]  # fmt: skip
    starts = 2 if quick else 20
    failing = [failing_row(RuleLearning(name, rank=rank, starts=starts)) for name, rank in FAILING]
    odd = [odd_row(recipe, of_tables) for recipe in track(others, "wrong n, few examples", console=console)]
    env = environment()
    text = "\n".join([
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread, {env['date']}", "",
        *markdown(tables), "", *markdown(algorithms), "", *markdown(failing), "", *markdown(odd), "",
    ])  # fmt: skip
    print(text)
    if not quick:
        parts = {"tables": tables, "algorithms": algorithms, "failing": failing, "odd": odd}
        write_json(RESULTS / "rules.json", {"environment": env} | parts)
        (RESULTS / "rules.md").write_text(text, "utf-8")


def table_row(name: str, seeds: range) -> dict:
    """The table of a product, without noise and with it."""
    plain = [learn(RuleLearning(name), seed) for seed in seeds]
    noisy = [learn(RuleLearning(name, noise=NOISE), seed) for seed in seeds]
    ratios = [one.error / one.optimum for one in noisy]
    return {
        "product": name,
        "n": plain[0].true.shape[0],
        f"error <= {TOLERANCE:g}": share(one.error <= TOLERANCE for one in plain),
        "largest error": worst(plain),
        f"noise {NOISE:g}: error <= {TIMES:g} optima": share(ratio <= TIMES for ratio in ratios),
        "largest error with noise": worst(noisy),
        "largest error / optimum": f"{max(ratios):.3f}",
        "steps, median": statistics.median(one.steps for one in plain),
        "seconds, largest": f"{max(one.seconds for one in plain + noisy):.2f}",
    }


def algorithm_row(recipe: RuleLearning, seeds: range) -> dict:
    """An algorithm of a rank: how often it is learned, and how often its small numbers are exact."""
    timed = [(time.perf_counter(), learn(recipe, seed), time.perf_counter()) for seed in seeds]
    found, seconds = [one for _, one, _ in timed], [end - began for began, _, end in timed]
    exact = [one.exact for one in found if one.exact is not None]
    counts = sorted(additions(algorithm) for algorithm in exact)
    return {
        "product": recipe.product,
        "products": recipe.rank,
        "noise": recipe.noise,
        "learned": share(one.verdict.startswith("learned") for one in found),
        "exact in fractions": share(one.exact is not None for one in found),
        "starts, median and most": f"{statistics.median(map(starts_of, found)):g}, {max(map(starts_of, found))}",
        "starts that arrived": f"{len(found)} of {sum(map(starts_of, found))}",
        "additions": f"{counts[0]} to {counts[-1]}" if counts else "-",
        "different formulas": len({formulas(algorithm) for algorithm in exact}),
        "largest error": worst(found),
        "seconds with rounding, median and largest": f"{statistics.median(seconds):.1f}, {max(seconds):.1f}",
    }  # fmt: skip


def failing_row(recipe: RuleLearning) -> dict:
    """An algorithm that does not exist."""
    one = learn(recipe)
    return {
        "product": recipe.product, "products": recipe.rank, "starts": one.starts, "least error": f"{one.error:.3f}",
        "seconds": f"{one.seconds:.1f}", "verdict": one.verdict,
    }  # fmt: skip


def odd_row(recipe: RuleLearning, seeds: range) -> dict:
    """A rule of another n, few examples, blocks."""
    found = [learn(recipe, seed) for seed in seeds]
    first = found[0]
    return {
        "product": recipe.product, "n of the product": first.product.algebra.n, "n of the rule": first.size,
        "examples": recipe.examples, "blocks": recipe.block,
        "determined": f"{first.determined} of {first.true.numel()}",
        "largest error there": worst(found),
        "optimum": f"{max(one.optimum for one in found):.1e}",
        "largest error of all entries": f"{max(one.whole_error for one in found):.1e}",
        "beyond the product's n": f"{max(one.surplus for one in found):.1e}",
        "seconds, largest": f"{max(one.seconds for one in found):.1f}",
    }  # fmt: skip


def share(hits: Iterable[bool]) -> str:
    """`10 of 10`."""
    listed = list(hits)
    return f"{sum(listed)} of {len(listed)}"


def worst(found: list[Learned]) -> str:
    """The largest error."""
    return f"{max(one.error for one in found):.1e}"


def starts_of(one: Learned) -> int:
    """For map."""
    return one.starts


def markdown(rows: list[dict]) -> list[str]:
    """A table of rows with the same keys."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    typer.run(main)
