"""How often nplex.algebra.identify names hidden algebras rightly, and random tables wrongly, and how long it takes.

    python benchmarks/identify.py --workers 2        # hours; writes benchmarks/results/identify.*
    python benchmarks/identify.py --resume           # goes on where it was stopped
    python benchmarks/identify.py --quick            # one small table of each kind; writes nothing

Each known algebra is hidden by three matrices of normal numbers, each drawn anew until its condition is
at most 30; then noise of normal numbers is added, of that share of the table's norm. `identify` is told that share
(0.0001 for none), which it uses at n = 2 only.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from studies import all_done

from nplex.algebra import identify
from nplex.algebra.isotopy import random_bases, transformed
from nplex.algebra.orbits import orbits
from nplex.checkpoint import write_json
from nplex.environment import environment

CONDITION = 30.0
NOISES = (0.0, 0.01, 0.05)
SIZES = (2, 3, 4, 8)
RESULTS = Path(__file__).parent / "results"


def main(
    quick: bool = typer.Option(False, help="A smoke test: few small tables, nothing written."),
    size: Annotated[
        list[int] | None, typer.Option(help="Which n; several times for several; all if left out.")
    ] = None,
    count: int = typer.Option(100, min=1, help="How often each algebra is hidden, and random tables of each size."),
    first_seed: int = typer.Option(2000, help="The first seed; the others follow."),
    workers: int = typer.Option(1, min=1, help="Processes, of one thread each."),
    resume: bool = typer.Option(False, help="Keep what the file has, of the same code, and do what is missing."),
) -> None:
    """Hide, identify, print the table, and write it with all figures as JSON, after each algebra."""
    torch.set_num_threads(1)
    file = RESULTS / "identify.json"
    kept = json.loads(file.read_text("utf-8")) if resume and file.exists() else {"hidden": [], "random": []}
    hidden, random = kept["hidden"], kept["random"]
    seeds = range(first_seed, first_seed + (1 if quick else count))
    for n in SIZES[:2] if quick else size or SIZES:
        for orbit in orbits(n):
            jobs = [(n, orbit.name, noise, seed) for noise in NOISES for seed in seeds]
            hidden += rows_of(missing(jobs, hidden), workers)
            if not quick:
                write(hidden, random)
        random += rows_of(missing([(n, None, 0.0, seed) for seed in seeds], random), workers)
        if not quick:
            write(hidden, random)
    print(text_of(hidden, random))


Job = tuple[int, str | None, float, int]


def missing(jobs: list[Job], rows: list[dict]) -> list[Job]:
    """The jobs (n, algebra or None, noise, seed) that no row is of."""
    done = {(row["n"], row["truth"], row["noise"], row["seed"]) for row in rows}
    return [job for job in jobs if job not in done]


def rows_of(jobs: list[Job], workers: int) -> list[dict]:
    """A row for each, in their order."""
    label = f"n = {jobs[0][0]}, {jobs[0][1] or 'random'}" if jobs else ""
    rows = dict(all_done(one, None, jobs, workers, label)) if jobs else {}
    return [rows[job] for job in jobs]


def one(_: None, job: Job) -> dict:
    """A hidden algebra, by the same bases at every noise, or a table of normal numbers."""
    n, truth, noise, seed = job
    generator = torch.Generator().manual_seed(seed)
    if truth is None:
        return timed(torch.randn(n, n, n, generator=generator, dtype=torch.float64), truth, noise, seed)
    orbit = next(orbit for orbit in orbits(n) if orbit.name == truth)
    table = transformed(random_bases(n, CONDITION, generator), orbit.algebra)
    added = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    return timed(table / table.norm() + noise * added / added.norm(), truth, noise, seed)


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
    head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, 1 thread each, {env['date']}"
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
