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
from nplex.lab.checkpoint import write_text
from nplex.lab.environment import environment

CONDITION = 30.0
NOISES = (0.0, 0.01, 0.05)
SIZES = (2, 3, 4, 8)
FILE = Path(__file__).parent / "results" / "identify.json"
KEYS = ("n", "truth", "noise", "seed", "name", "confidence", "nearest", "own", "seconds")
# How many are done between two writings.
BETWEEN = 100


def main(
    quick: bool = typer.Option(False, help="A smoke test: few small tables, nothing written."),
    size: Annotated[
        list[int] | None, typer.Option(help="Which n; several times for several; all if left out.")
    ] = None,
    count: int = typer.Option(100, min=1, help="How often each algebra is hidden."),
    tables: int = typer.Option(1000, min=0, help="Random tables of each size."),
    first_seed: int = typer.Option(2000, help="The first seed; the others follow."),
    workers: int = typer.Option(1, min=1, help="Processes, of one thread each."),
    resume: bool = typer.Option(False, help="Keep what the file has, of whatever commit, and do what is missing."),
) -> None:
    """Hide, identify, print the table, and write it with all figures as JSON, now and then and at the end."""
    torch.set_num_threads(1)
    if quick:
        count, tables = 1, 1
    environments, rows = read() if resume else ([], {})
    environments = with_this(environments)
    for n in SIZES[:2] if quick else size or SIZES:
        jobs: list[Job] = [
            (n, orbit.name, noise, first_seed + k) for orbit in orbits(n) for noise in NOISES for k in range(count)
        ]
        jobs += [(n, None, 0.0, first_seed + k) for k in range(tables)]
        missing = [job for job in jobs if job not in rows]
        for done, (job, row) in enumerate(all_done(one, None, missing, workers, f"n = {n}"), 1):
            rows[job] = row
            if not quick and (done % BETWEEN == 0 or done == len(missing)):
                write(environments, rows)
    print(text_of(ordered(rows)))


Job = tuple[int, str | None, float, int]


def job_of(row: dict) -> Job:
    """What a row is of: n, algebra or None, noise, seed."""
    return row["n"], row["truth"], row["noise"], row["seed"]


def ordered(rows: dict[Job, dict]) -> list[dict]:
    """By n, algebras as they are listed and then random tables, noise, seed."""
    names = {n: [orbit.name for orbit in orbits(n)] for n in {job[0] for job in rows}}

    def place(job: Job) -> tuple[int, int, float, int]:
        n, truth, noise, seed = job
        return n, len(names[n]) if truth is None else names[n].index(truth), noise, seed

    return [rows[job] for job in sorted(rows, key=place)]


def with_this(environments: list[dict]) -> list[dict]:
    """And this machine, unless it is there already with the same commit."""
    here, alike = environment(), ("commit", "torch", "processor")
    return environments if any(all(e[k] == here[k] for k in alike) for e in environments) else [*environments, here]


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
    nearest = min(row.distance for row in result.distances)
    values = (result.n, truth, noise, seed, result.name, result.confidence, nearest, own, seconds)
    return dict(zip(KEYS, [short(value) for value in values], strict=True))


def short(value: object) -> object:
    """A fraction in four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write(environments: list[dict], rows: dict[Job, dict]) -> None:
    """The results so far, each written beside and renamed; in the JSON a line for each row, its keys told once."""
    lines = ",\n".join(json.dumps([row[key] for key in KEYS], separators=(",", ":")) for row in ordered(rows))
    head = json.dumps({"environments": environments, "keys": KEYS}, indent=1).removesuffix("\n}")
    write_text(FILE, f'{head},\n "rows": [\n{lines}\n]}}\n')
    heads = [f"nplex {e['commit']}, torch {e['torch']}, {e['processor']}, {e['date']}" for e in environments]
    text = "\n\n".join(["; ".join(heads) + "; 1 thread each", text_of(ordered(rows))])
    write_text(FILE.with_suffix(".md"), text + "\n")


def read() -> tuple[list[dict], dict[Job, dict]]:
    """The environments and rows of the file; none without it."""
    if not FILE.exists():
        return [], {}
    kept = json.loads(FILE.read_text("utf-8"))
    rows = [dict(zip(kept["keys"], values, strict=True)) for values in kept["rows"]]
    return kept["environments"], {job_of(row): row for row in rows}


def text_of(rows: list[dict]) -> str:
    """A row for each algebra, one for all of a size, and the random tables."""
    hidden, random = ([row for row in rows if (row["truth"] is None) == none] for none in (False, True))
    heads = "".join(f" right at {noise:.0%} |" for noise in NOISES)
    lines = [f"| n | algebra |{heads} median s | largest s |", "|---" * (len(NOISES) + 4) + "|"]
    for n in dict.fromkeys(row["n"] for row in hidden):
        of_size = [row for row in hidden if row["n"] == n]
        for name in dict.fromkeys(row["truth"] for row in of_size):
            lines.append(_row(n, name, [row for row in of_size if row["truth"] == name]))
        lines.append(_row(n, "all", of_size))
    lines += ["", "| n | random tables | named | nearest | median s | largest s |", "|---|---|---|---|---|---|"]
    for n in dict.fromkeys(row["n"] for row in random):
        of_size = [row for row in random if row["n"] == n]
        seconds = [row["seconds"] for row in of_size]
        named = sum(row["name"] is not None for row in of_size)
        nearest, median = min(row["nearest"] for row in of_size), statistics.median(seconds)
        lines.append(f"| {n} | {len(of_size)} | {named} | {nearest:.2f} | {median:.2f} | {max(seconds):.2f} |")
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
