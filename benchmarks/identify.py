"""How often nplex.algebra.identify names hidden algebras rightly, and random tables wrongly, and how long it takes.

    python benchmarks/identify.py            # hours; writes benchmarks/results/identify.*
    python benchmarks/identify.py --quick    # one small table of each kind, to see that it runs; writes nothing

One thread. Each known algebra is hidden by three matrices of normal numbers, each drawn anew until its condition is
at most 30; then noise of normal numbers is added, of that share of the table's norm. `identify` is told that share
(0.0001 for none), which it uses at n = 2 only.
"""

import statistics
import time
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import track

from nplex.algebra import identify
from nplex.algebra.isotopy import random_bases, transformed
from nplex.algebra.orbits import Orbit, orbits
from nplex.checkpoint import write_json
from nplex.environment import environment

CONDITION = 30.0
NOISES = (0.0, 0.01, 0.05)
SIZES = (2, 3, 4, 8)
RESULTS = Path(__file__).parent / "results"


def main(
    quick: bool = typer.Option(False, help="A smoke test: few small tables, nothing written."),
    count: int = typer.Option(
        100, help="How often each algebra is hidden, at n = 2, 3 and 4; random tables of each."
    ),
    count_8: int = typer.Option(100, help="The same at n = 8."),
) -> None:
    """Hide, identify, print the table, and write it with all figures as JSON."""
    torch.set_num_threads(1)
    console = Console(stderr=True)
    jobs = [(n, 1 if quick else count_8 if n == 8 else count) for n in (SIZES[:2] if quick else SIZES)]
    hidden, random = [], []
    for n, times in jobs:
        for orbit in track(orbits(n), f"n = {n}", console=console):
            hidden += [found(orbit, noise, seed) for noise in NOISES for seed in range(times)]
        random += [unknown(n, seed) for seed in track(range(times), "random", console=console)]
        if not quick:
            write(hidden, random)
    print(text_of(hidden, random))


def found(orbit: Orbit, noise: float, seed: int) -> dict:
    """One hidden algebra; the seed gives the same bases at every noise."""
    generator, n = torch.Generator().manual_seed(seed), orbit.algebra.shape[0]
    table = transformed(random_bases(n, CONDITION, generator), orbit.algebra)
    added = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    return timed(table / table.norm() + noise * added / added.norm(), orbit.name, noise, seed)


def unknown(n: int, seed: int) -> dict:
    """One table of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    return timed(torch.randn(n, n, n, generator=generator, dtype=torch.float64), None, 0.0, seed)


def timed(table: torch.Tensor, truth: str | None, noise: float, seed: int) -> dict:
    """One identification."""
    began = time.perf_counter()
    result = identify(table, noise=max(noise, 1e-4))
    seconds = time.perf_counter() - began
    own = next((row.distance for row in result.distances if row.name == truth), None)
    return {
        "n": result.n, "truth": truth, "noise": noise, "seed": seed, "name": result.name,
        "confidence": result.confidence, "nearest": min(row.distance for row in result.distances), "own": own,
        "seconds": seconds,
    }  # fmt: skip


def write(hidden: list[dict], random: list[dict]) -> None:
    """The results so far."""
    env = environment()
    write_json(RESULTS / "identify.json", {"environment": env, "hidden": hidden, "random": random})
    head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread, {env['date']}"
    (RESULTS / "identify.md").write_text(f"{head}\n\n{text_of(hidden, random)}\n", "utf-8")


def text_of(hidden: list[dict], random: list[dict]) -> str:
    """A row for each algebra, one for all of a size, and the random tables."""
    heads = "".join(f" right at {noise:.0%} |" for noise in NOISES)
    lines = [f"| n | algebra |{heads} median s | largest s |", "|---" * (len(NOISES) + 4) + "|"]
    for n in dict.fromkeys(row["n"] for row in hidden):
        of_size = [row for row in hidden if row["n"] == n]
        for name in dict.fromkeys(row["truth"] for row in of_size):
            lines.append(_row(n, name, [row for row in of_size if row["truth"] == name]))
        lines.append(_row(n, "all", of_size))
    lines += ["", "| n | random tables | named | nearest | median s | largest s |", "|---|---|---|---|---|---|"]
    for n in dict.fromkeys(row["n"] for row in random):
        rows = [row for row in random if row["n"] == n]
        seconds = [row["seconds"] for row in rows]
        named = sum(row["name"] is not None for row in rows)
        nearest = min(row["nearest"] for row in rows)
        lines.append(
            f"| {n} | {len(rows)} | {named} | {nearest:.2f} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |"
        )
    return "\n".join(lines)


def _row(n: int, name: str, rows: list[dict]) -> str:
    cells = ""
    for noise in NOISES:
        those = [row for row in rows if row["noise"] == noise]
        cells += f" {sum(row['name'] == row['truth'] for row in those)} of {len(those)} |"
    seconds = [row["seconds"] for row in rows]
    return f"| {n} | {name} |{cells} {statistics.median(seconds):.2f} | {max(seconds):.2f} |"


if __name__ == "__main__":
    typer.run(main)
