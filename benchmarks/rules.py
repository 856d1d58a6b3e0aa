"""Learns known products from examples: tables, algorithms, wrong n, few examples; how often and how well.

    python benchmarks/rules.py           # some minutes; writes benchmarks/results/rules.*
    python benchmarks/rules.py --quick   # few of each, to see that it runs; writes nothing

One thread, 1,000 examples where nothing else is said. Each row is of many seeds and shows the worst of them.
"""

import time
from collections.abc import Iterable
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import track

from nplex.algebra import additions
from nplex.files import write_json
from nplex.lab.environment import environment
from nplex.lab.products import Learned, RuleLearning, learn
from nplex.lab.summary import markdown_table

TABLES = (
    "real", "complex", "quaternion", "octonion", "rotation", "rotation-pure", "rotation-axis", "rotation-real",
    "clifford(2,0)", "clifford(3,0)", "cyclic(5)", "matrices(2)", "random(4)", "sedenion", "matrices(3)",
)  # fmt: skip
ALGORITHMS = (
    ("complex", 3),
    ("quaternion", 8),
    ("matrices(2)", 7),
    ("complex", 2),
    ("quaternion", 7),
    ("matrices(2)", 6),
)
OTHERS = (
    *(RuleLearning("quaternion", n) for n in (1, 2, 3, 5, 8)), RuleLearning("octonion", 4),
    *(RuleLearning("octonion", examples=count) for count in (20, 64, 70, 100)),
)  # fmt: skip
TOLERANCE, NOISE = 1e-5, 0.01
RESULTS = Path(__file__).parent / "results"


def main(quick: bool = typer.Option(False, help="A smoke test: one seed of few products, nothing written.")) -> None:
    """Learn, print the tables, and write them with all figures as JSON."""
    torch.set_num_threads(1)
    console = Console(stderr=True)
    few, many, some = (range(1), range(1), 1) if quick else (range(10), range(20), None)
    tables = [table_row(name, few) for name in track(TABLES[:some], "tables", console=console)]
    ranks = [(*pair, noise) for noise in (0.0, NOISE) for pair in ALGORITHMS][:some]
    algorithms = [algorithm_row(*each, many) for each in track(ranks, "algorithms", console=console)]
    others = [other_row(recipe, few[:3]) for recipe in track(OTHERS[:some], "wrong n, few examples", console=console)]
    env = environment()
    parts = {"tables": tables, "algorithms": algorithms, "others": others}
    head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread, {env['date']}"
    text = "\n\n".join([head, *map(markdown, parts.values())]) + "\n"
    print(text)
    if not quick:
        write_json(RESULTS / "rules.json", {"environment": env} | parts)
        (RESULTS / "rules.md").write_text(text, "utf-8")


def table_row(name: str, seeds: range) -> dict:
    """The table of a product, without noise and with it."""
    began = time.perf_counter()
    plain = [learn(RuleLearning(name), seed) for seed in seeds]
    seconds = (time.perf_counter() - began) / len(seeds)
    noisy = [learn(RuleLearning(name, noise=NOISE), seed) for seed in seeds]
    return {
        "product": name,
        "n": plain[0].size,
        f"error <= {TOLERANCE:g}": share(one.error <= TOLERANCE for one in plain),
        "largest error": worst(plain),
        f"largest error, noise {NOISE:g}": worst(noisy),
        "of the least-squares table's": f"{max(one.error / one.optimum for one in noisy):.3f}",
        "steps, most": max(one.trail[-1].step for one in plain),
        "seconds, mean": f"{seconds:.2f}",
    }


def algorithm_row(name: str, rank: int, noise: float, seeds: range) -> dict:
    """An algorithm of a rank: how often it is found, and how often its small numbers are exact."""
    began = time.perf_counter()
    found = [learn(RuleLearning(name, rank=rank, noise=noise), seed) for seed in seeds]
    counts = sorted(additions(one.exact) for one in found if one.exact is not None)
    return {
        "product": name, "products": rank, "noise": noise,
        "found": share(one.search is not None and one.search.verdict == "exact" for one in found),
        "impossible": share(one.search is not None and one.search.verdict == "impossible" for one in found),
        "exact in fractions": share(one.exact is not None for one in found),
        "additions": f"{counts[0]} to {counts[-1]}" if counts else "-",
        "seconds, mean": f"{(time.perf_counter() - began) / len(found):.2f}",
    }  # fmt: skip


def other_row(recipe: RuleLearning, seeds: range) -> dict:
    """A rule of another n, few examples."""
    found = [learn(recipe, seed) for seed in seeds]
    first = found[0]
    return {
        "product": recipe.product, "n of the product": first.product.algebra.n, "n of the rule": first.size,
        "examples": recipe.examples, "determined": f"{first.determined} of {first.true.numel()}",
        "largest error there": worst(found), "outcome": first.verdict,
    }  # fmt: skip


def share(hits: Iterable[bool]) -> str:
    """`10 of 10`."""
    listed = list(hits)
    return f"{sum(listed)} of {len(listed)}"


def worst(found: list[Learned]) -> str:
    """The largest error."""
    return f"{max(one.error for one in found):.1e}"


def markdown(rows: list[dict]) -> str:
    """A table of rows with the same keys."""
    return markdown_table([list(rows[0]), *([str(value) for value in row.values()] for row in rows)])


if __name__ == "__main__":
    typer.run(main)
