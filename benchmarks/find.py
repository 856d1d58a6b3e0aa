"""Times the search for bilinear algorithms: random tables, and the known algebras.

    python benchmarks/find.py            # about three minutes; writes benchmarks/results/find.*

One thread. For each n, 20 tables of normal numbers without a rank given, as `find(table)` is called.
"""

import statistics
import time
from collections import Counter
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.progress import track

from nplex.algebra import find, named
from nplex.checkpoint import write_json
from nplex.environment import environment

TABLES = 20
ALGEBRAS = (
    "complex", "split_complex", "dual", "quaternion", "split_quaternion", "matrices(2)", "cyclic(5)", "direct(8)",
    "clifford(3,0,0)", "octonion",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Search, print both tables, and write them with all figures as JSON."""
    torch.set_num_threads(1)
    console = Console(stderr=True)
    random = [timed(table, f"n={n}") for n in track(range(2, 9), "random", console=console) for table in tables(n)]
    known = [timed(named(name).table, name) for name in track(ALGEBRAS, "algebras", console=console)]
    env = environment()
    text = (
        f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread, {env['date']}\n\n"
        + table_of_random(random) + "\n\n" + table_of_known(known) + "\n"
    )  # fmt: skip
    print(text)
    write_json(RESULTS / "find.json", {"environment": env, "seed": 0, "random": random, "known": known})
    (RESULTS / "find.md").write_text(text, "utf-8")


def tables(n: int) -> list[torch.Tensor]:
    """Normal numbers; the same ones at every run."""
    generator = torch.Generator().manual_seed(n)
    return [torch.randn(n, n, n, generator=generator, dtype=torch.float64) for _ in range(TABLES)]


def timed(table: torch.Tensor, name: str) -> dict:
    """One search."""
    began = time.perf_counter()
    search = find(table)
    return {
        "name": name, "rank": search.rank, "verdict": search.verdict, "error": search.error, "growth": search.growth,
        "seconds": time.perf_counter() - began, "reason": search.reason,
    }  # fmt: skip


def table_of_random(found: list[dict]) -> str:
    """A row for each n."""
    lines = [
        "| random tables | exact | ranks | largest error | largest growth | median s | largest s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["name"] for row in found):
        rows = [row for row in found if row["name"] == name]
        exact = sum(row["verdict"] == "exact" for row in rows)
        ranks = ", ".join(f"{rank} ({count})" for rank, count in sorted(Counter(row["rank"] for row in rows).items()))
        error, growth, slowest = (max(row[key] for row in rows) for key in ("error", "growth", "seconds"))
        share, median = f"{exact} of {len(rows)}", statistics.median(row["seconds"] for row in rows)
        lines.append(f"| {name} | {share} | {ranks} | {error:.1e} | {growth:.1f} | {median:.2f} | {slowest:.2f} |")
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
