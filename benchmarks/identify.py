"""How often nplex.algebra.identify names hidden algebras rightly, and random tables wrongly, and how long it takes.

    python benchmarks/identify.py            # an hour; writes benchmarks/results/identify.*
    python benchmarks/identify.py --quick    # one small table of each kind; writes nothing

Each known algebra is hidden by three matrices of normal numbers, each drawn anew until its condition is at most 30;
then noise of normal numbers is added, of that share of the table's norm. `identify` gets it (0.0001 for none),
which it uses at n = 2 only. Seconds are of processor time, one thread.
"""

import statistics
import time
from pathlib import Path

import torch
import typer

from nplex.algebra import identify
from nplex.algebra.classes import classes
from nplex.algebra.identification.bases import transformed
from nplex.files import write_json, write_text
from nplex.lab.environment import environment

NOISES = (0.0, 0.01)
FILE = Path(__file__).parent / "results" / "identify.json"


def main(
    quick: bool = typer.Option(False, help="A smoke test: few small tables, nothing written."),
    count: int = typer.Option(30, min=1, help="How often each algebra is hidden, and a tenth of the random tables."),
    first_seed: int = typer.Option(2000, help="The first seed; the others follow."),
) -> None:
    """Hide, identify, print the table, and write it with all figures as JSON."""
    torch.set_num_threads(1)
    rows = []
    for n in (2, 3) if quick else (2, 3, 4, 8):
        names = [each.name for each in classes(n)]
        seeds = range(first_seed, first_seed + (1 if quick else count))
        rows += [one(n, name, noise, seed) for name in names for noise in NOISES for seed in seeds]
        rows += [one(n, None, 0.0, seed) for seed in range(first_seed, first_seed + 10 * len(seeds)) if n > 2]
    print(text := text_of(rows))
    if not quick:
        env = environment()
        write_json(FILE, {"environment": env, "rows": rows})
        head = f"nplex {env['commit']}, torch {env['torch']}, {env['processor']}, {env['date']}; 1 thread"
        write_text(FILE.with_suffix(".md"), f"{head}\n\n{text}\n")


def one(n: int, truth: str | None, noise: float, seed: int) -> dict:
    """Identifies a hidden algebra, by the same bases at every noise, or a table of normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(n, n, n, generator=generator, dtype=torch.float64)
    if truth is not None:
        known = next(each for each in classes(n) if each.name == truth)
        hidden = transformed(random_bases(n, generator), known.table)
        table = hidden / hidden.norm() + noise * table / table.norm()
    began = time.process_time()
    name = identify(table, noise=max(noise, 1e-4)).name
    return {
        "n": n,
        "truth": truth,
        "noise": noise,
        "seed": seed,
        "name": name,
        "seconds": time.process_time() - began,
    }


def random_bases(n: int, generator: torch.Generator, most: float = 30.0) -> torch.Tensor:
    """Draws three matrices of normal numbers, each anew until its condition is at most `most`."""
    found: list[torch.Tensor] = []
    while len(found) < 3:
        drawn = torch.randn(n, n, generator=generator, dtype=torch.float64)
        found += [drawn] if torch.linalg.cond(drawn) <= most else []
    return torch.stack(found)


def text_of(rows: list[dict]) -> str:
    """A row for each algebra, one for all of a size, and the random tables."""
    lines = ["| n | algebra | right at 0 % | right at 1 % | median s | largest s |", "|---|---|---|---|---|---|"]
    for n in dict.fromkeys(row["n"] for row in rows):
        of_size = [row for row in rows if row["n"] == n]
        known = [row for row in of_size if row["truth"] is not None]
        groups = {
            name: [row for row in known if row["truth"] == name] for name in dict.fromkeys(r["truth"] for r in known)
        }
        for name, those in {**groups, "all": known}.items():
            right = [[row["name"] == row["truth"] for row in those if row["noise"] == noise] for noise in NOISES]
            cells = " | ".join(f"{sum(each)} of {len(each)}" for each in right)
            seconds = [row["seconds"] for row in those]
            lines.append(f"| {n} | {name} | {cells} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
        if random := [row for row in of_size if row["truth"] is None]:
            named = sum(row["name"] is not None for row in random)
            seconds = [row["seconds"] for row in random]
            cells = f"{named} of {len(random)} named | |"
            lines.append(f"| {n} | random tables | {cells} {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
