"""Times the search for bilinear algorithms: random tables, cold and warm, and the known algebras.

    python benchmarks/find.py            # about ten minutes; writes benchmarks/results/find.*
    python benchmarks/find.py --quick    # one small table of each kind, to see that it runs; writes nothing

One thread. For each n, tables of normal numbers without a rank given, as `find(table)` is called; then each again
with noise of a thousandth of its norm, starting from what was found.
"""

import statistics
import time
from collections import Counter
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import track

from nplex.algebra import BilinearAlgorithm, Search, find, named
from nplex.files import write_json
from nplex.lab.environment import environment

TABLES = {2: 20, 3: 20, 4: 20, 5: 20, 6: 20, 7: 20, 8: 20, 10: 10, 12: 10, 16: 5, 20: 3}
QUICK = {2: 1, 8: 1, 10: 1}
NOISE = 1e-3
ALGEBRAS = (
    "complex", "split_complex", "dual", "quaternion", "split_quaternion", "matrices(2)", "cyclic(5)", "direct(8)",
    "clifford(3,0,0)", "octonion",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main(quick: bool = typer.Option(False, help="A smoke test: few small tables, nothing written.")) -> None:
    """Search, print the tables, and write them with all figures as JSON."""
    torch.set_num_threads(1)
    console = Console(stderr=True)
    sizes, algebras = (QUICK, ALGEBRAS[:2]) if quick else (TABLES, ALGEBRAS)
    cold, warm = [], []
    for n in track(sizes, "random", console=console):
        for table, noise in tables(n, sizes[n]):
            row, search = timed(table, f"n={n}")
            cold.append(row)
            warm.append(timed(table + noise, f"n={n}", search.algorithm)[0])
    known = [timed(named(name).table, name)[0] for name in track(algebras, "algebras", console=console)]
    env = environment()
    text = (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread, {env['date']}\n\n"
        + table_of_random("random tables", cold) + "\n\n"
        + table_of_random(f"the same with noise of {NOISE:g}, from what was found", warm) + "\n\n"
        + table_of_known(known) + "\n"
    )  # fmt: skip
    print(text)
    if not quick:
        write_json(
            RESULTS / "find.json", {"environment": env, "seed": 0, "random": cold, "warm": warm, "known": known}
        )
        (RESULTS / "find.md").write_text(text, "utf-8")


def tables(n: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Normal numbers, and noise of a thousandth of their norm; the same ones at every run."""
    generator = torch.Generator().manual_seed(n)
    made = [torch.randn(n, n, n, generator=generator, dtype=torch.float64) for _ in range(count)]
    noises = [torch.randn(n, n, n, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(table, noise * NOISE * table.norm() / noise.norm()) for table, noise in zip(made, noises, strict=True)]


def timed(table: torch.Tensor, name: str, start: BilinearAlgorithm | None = None) -> tuple[dict, Search]:
    """One search."""
    began = time.perf_counter()
    search = find(table, start=start)
    seconds = time.perf_counter() - began
    row = {
        "name": name, "rank": search.rank, "verdict": search.verdict, "error": search.error, "growth": search.growth,
        "starts": len(search.attempts), "steps": sum(attempt.steps for attempt in search.attempts),
        "seconds": seconds, "reason": search.reason,
    }  # fmt: skip
    return row, search


def table_of_random(title: str, found: list[dict]) -> str:
    """A row for each n."""
    lines = [
        f"| {title} | exact | ranks | largest error | largest growth | median steps | median s | largest s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in found):
        rows = [row for row in found if row["name"] == name]
        exact = sum(row["verdict"] == "exact" for row in rows)
        ranks = ", ".join(f"{rank} ({count})" for rank, count in sorted(Counter(row["rank"] for row in rows).items()))
        error, growth, slowest = (max(row[key] for row in rows) for key in ("error", "growth", "seconds"))
        steps, median = (statistics.median(row[key] for row in rows) for key in ("steps", "seconds"))
        lines.append(
            f"| {name} | {exact} of {len(rows)} | {ranks} | {error:.1e} | {growth:.1f} | {steps:.0f} | {median:.2f} "
            f"| {slowest:.2f} |"
        )
    return "\n".join(lines)


def table_of_known(found: list[dict]) -> str:
    """A row for each algebra."""
    lines = ["| algebra | products found | error | growth | s |", "|---|---|---|---|---|"]
    for row in found:
        lines.append(
            f"| {row['name']} | {row['rank']} ({row['verdict']}) | {row['error']:.1e} | {row['growth']:.1f} "
            f"| {row['seconds']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
