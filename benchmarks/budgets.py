"""Is a wider hypercomplex model better than a dense one of the same parameters, or of the same training FLOPs?

    python benchmarks/budgets.py           # hours of one core; not run to its end yet
    python benchmarks/budgets.py --quick   # tiny models and a few steps, to see that it runs; writes no results

The bytes, batches and schedule of step_sizes.py; blocks of each family: dense; learned rules of rank n and of the
generic rank; low rank; two block-diagonal matrices with a permutation between them. For each dense width of BUDGETS
each family gets the width at which (a) the parameters of its blocks, (b) the FLOPs of its training equal the dense
model's; all read the same number of bytes. Each model is tuned alike, with the first seed: runs of the full length
with rates a factor of sqrt(2) apart, from START up and down until the best on the dev half of the tested modules has
a worse one on each side. Runs that are done are in --out and not done again. Times are of steps in turns, at the end:
keep the machine quiet then. Writes results/budgets.json, .md and .png. Sizes and counts are in budgets_models.py,
table and figure in budgets_page.py.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from budgets_models import DENSE, TOKENS, Model, Point, built, check_counts, counted, points
from budgets_page import figure, page
from rich.progress import track
from step_sizes import LENGTH, TESTED, fitted, lines, texts
from studies import CONSOLE, all_done

from nplex.files import read_json, write_json, write_text
from nplex.lab.environment import environment

RESULTS = Path(__file__).parents[1] / "results"
BUDGETS = (256,)  # widths of the dense models that the others are made equal to
WIDTHS = (192, 256, 384)  # of dense models, the curve to compare with
START = 1.41e-3  # the first rate that is tried
TRIED = 5  # at most, factors of sqrt(2) up or down
PARTS = ("dev", "test")  # halves of the modules that no model is trained on


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    steps: int
    seeds: int
    out: Path


def main(
    steps: Annotated[int, typer.Option(min=1)] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0; rates are chosen with the first.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Models at a time, each of one thread.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("runs/budgets"),
    base: Annotated[list[int] | None, typer.Option(help="Dense widths to be equal to; BUDGETS if left out.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Beside dense, as 'low rank'; all if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Width 32, five steps; writes no results.")] = False,
) -> None:
    """Run what is missing, then print the table and write it with all figures as JSON and a figure."""
    torch.set_num_threads(1)
    study = Study(5, seeds, out / "quick") if quick else Study(steps, seeds, out)
    check_counts(width=32)
    chosen = points(*(((32,), (32, 40)) if quick else (tuple(base or BUDGETS), WIDTHS)))
    if family:
        chosen = [point for point in chosen if point.model.family.name in (DENSE.name, *family)]
    models = list(dict.fromkeys(point.model for point in chosen))
    try:
        rows = [row for _, rows in all_done(done, study, models, processes, "budgets") for row in rows]
    except KeyboardInterrupt:
        CONSOLE.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    seconds = timed(models, rounds=1 if quick else 9)
    for row in rows:
        row["seconds"] = study.steps * seconds[row["family"], row["width"]]
    found = summary(study, chosen, rows)
    print(shown := page(found))
    place = (study.out if quick else RESULTS) / "budgets"
    write_json(place.with_suffix(".json"), found)
    write_text(place.with_suffix(".md"), shown + "\n")
    figure(found, place.with_suffix(".png"))


def done(study: Study, model: Model) -> list[dict]:
    """A model's runs with the best of its rates, one for each seed; those that are finished are only read."""

    def run(rate: float, seed: int) -> dict[str, float]:
        file = study.out / f"{model.file}-{rate:.2e}-{seed}-{study.steps}.json"
        if not file.exists():
            write_json(file, trained(model, rate, seed, study.steps))
        return read_json(file)

    tuned = descended(lambda rate: run(rate, 0)["dev"])
    rate, size = min(tuned, key=lambda rate: tuned[rate]), counted(model)
    return [
        {
            "family": model.family.name, "rule": model.family.rule, "width": model.width, "seed": seed,
            "tuning": tuned, "rate": rate, **run(rate, seed), "blocks": size.blocks,
            "parameters": size.parameters, "flops": size.flops * study.steps, "bytes": TOKENS * study.steps,
        }
        for seed in range(study.seeds)
    ]  # fmt: skip


def trained(model: Model, rate: float, seed: int, steps: int) -> dict[str, float]:
    """The loss on each of PARTS, in nats a byte, and the commit."""
    torch.manual_seed(seed)
    net = built(model)
    fitted(net, net.parameters(), rate, seed, steps, lambda step, text: net(text))
    found = {}
    with torch.no_grad():
        for name, text in zip(PARTS, texts()[1].tensor_split(len(PARTS)), strict=True):
            pieces = lines(text, TESTED, torch.Generator().manual_seed(0))
            found[name] = statistics.fmean(float(net(piece)) for piece in pieces.split(16))
    return found | {"commit": environment()["commit"]}


def descended(loss: Callable[[float], float]) -> dict[float, float]:
    """The losses of rates, each sqrt(2) from the next, until the lowest is not at an end of them (or TRIED)."""
    rates = {step: START * 2 ** (step / 2) for step in range(-TRIED, TRIED + 1)}
    found = {step: loss(rates[step]) for step in (0, -1, 1)}
    while (best := min(found, key=lambda step: found[step])) in {min(found), max(found)} and abs(best) < TRIED:
        step = best + (1 if best > 0 else -1)
        found[step] = loss(rates[step])
    return {rates[step]: found[step] for step in sorted(found)}


def timed(models: list[Model], rounds: int) -> dict[tuple[str, int], float]:
    """Seconds of a training step of each family and width: all in turns, so many times, the median."""
    steps = {(model.family.name, model.width): step_of(model) for model in models}
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for _ in track(range(rounds + 1), "times", console=CONSOLE):  # the first of all is not counted
        for key, step in steps.items():
            began = time.perf_counter()
            step()
            taken[key].append(time.perf_counter() - began)
    return {key: statistics.median(found[1:]) for key, found in taken.items()}


def step_of(model: Model) -> Callable[[], object]:
    """A training step on the first batch."""
    torch.manual_seed(0)
    net, text = built(model), lines(texts()[0], TOKENS // LENGTH, torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(net.parameters(), lr=START)

    def step() -> None:
        optimizer.zero_grad()
        net(text).backward()
        optimizer.step()

    return step


def summary(study: Study, chosen: list[Point], rows: list[dict]) -> dict:
    """All figures: the models, and which of them are compared."""
    compared = [
        {"family": p.model.family.name, "width": p.model.width, "base": p.base, "equal": p.equal} for p in chosen
    ]
    return {
        "steps": study.steps, "dense": DENSE.name,
        "compared": compared, "models": rows, "environment": environment(),
        "commits": sorted({row["commit"] for row in rows}),
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
