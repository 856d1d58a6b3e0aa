"""Is a wider hypercomplex model better than a dense one of the same parameters, or of the same training FLOPs?

    python benchmarks/budgets.py           # hours of one core; not run to its end yet
    python benchmarks/budgets.py --quick   # tiny models and a few steps, to see that it runs; writes no results

The language recipe on bytes, its blocks of each family: dense; learned rules of rank n and of the generic rank; low
rank; two block-diagonal matrices with a permutation between them. For each dense width of BUDGETS each family gets
the width at which (a) the parameters of its blocks, (b) the FLOPs of its training equal the dense model's; all read
the same number of bytes. Each model is tuned alike, on the first seed: runs of the full length with rates a factor of
sqrt(2) apart, from START up and down until the best on the dev part has a worse one on each side. Every run has a
folder of its own below --out, so that a second call goes on with what is missing. Times are of steps in turns, at
the end: keep the machine quiet then. Writes
results/budgets.json, .md and .png. Sizes and counts are in budgets_models.py, table and figure in budgets_page.py.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from budgets_models import DENSE, Model, Point, batch_shape, check_counts, counted, loaded, points, recipe
from budgets_page import figure, page
from rich.progress import track
from studies import CONSOLE, all_done

from nplex.files import write_json, write_text
from nplex.lab import experiment
from nplex.lab.environment import environment
from nplex.lab.train import Interrupted

RESULTS = Path(__file__).parents[1] / "results"
BUDGETS = (256,)  # widths of the dense models that the others are made equal to
WIDTHS = (192, 256, 384)  # of dense models, the curve to compare with
START = 1.41e-3  # the first rate that is tried
TRIED = 5  # at most, factors of sqrt(2) up or down


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    data: Path | None
    steps: int
    seeds: int
    out: Path


def main(
    size: Annotated[int, typer.Option("--bytes", min=10_000, help="That each run reads.")] = 512_000,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0; rates are chosen with the first.")] = 3,
    processes: Annotated[int, typer.Option(min=1, help="Models at a time, each of one thread.")] = 1,
    data: Annotated[Path | None, typer.Option(help="A folder; the built-in text if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("runs/budgets"),
    base: Annotated[list[int] | None, typer.Option(help="Dense widths to be equal to; BUDGETS if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Width 32, three steps; writes no results.")] = False,
) -> None:
    """Run what is missing, then print the table and write it with all figures as JSON and a figure."""
    torch.set_num_threads(1)
    steps = 5 if quick else max(1, size // batch_shape(data)[0])
    study = Study(data, steps, seeds, out / "quick" if quick else out)
    check_counts(data, width=32)
    chosen = points(data, *(((32,), (32, 40)) if quick else (tuple(base or BUDGETS), WIDTHS)))
    models = list(dict.fromkeys(point.model for point in chosen))
    try:
        rows = [row for _, rows in all_done(done, study, models, processes, "budgets") for row in rows]
    except (Interrupted, KeyboardInterrupt):
        CONSOLE.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    seconds = timed(models, data, rounds=1 if quick else 9)
    for row in rows:
        row["seconds"] = steps * seconds[row["family"], row["width"]]
    found = summary(study, chosen, rows)
    print(shown := page(found))
    place = (study.out if quick else RESULTS) / "budgets"
    write_json(place.with_suffix(".json"), found)
    write_text(place.with_suffix(".md"), shown + "\n")
    figure(found, place.with_suffix(".png"))


def done(study: Study, model: Model) -> list[dict]:
    """A model's runs with the best of its rates, one for each seed; those that are finished are only read."""
    data, folder = loaded(study.data), study.out / model.folder

    def trained(rate: float, seed: int) -> tuple[dict, float]:
        chosen = recipe(model, rate, study.steps)
        run = experiment.run(chosen, data, seed, folder / f"rate-{rate:.2e}-seed{seed}")
        return run, run["history"][-1][chosen.task(data).main]

    tuned = descended(lambda rate: trained(rate, 0)[1])
    rate = min(tuned, key=lambda rate: tuned[rate])
    size, rows = counted(model, study.data), []
    for seed in range(study.seeds):
        run, dev = trained(rate, seed)
        rows.append({
            "family": model.family.name, "rule": model.family.rule, "width": model.width, "seed": seed,
            "tuning": tuned, "rate": rate, "dev": dev,
            "test": run["scores"]["loss"], "interval": run["interval"], "blocks": size.blocks,
            "parameters": run["parameters"], "flops": size.flops * study.steps,
            "bytes": round(run["training_seconds"] * run["training_tokens_per_second"]),
            "recipe": run["recipe"], "environment": run["environment"],
        })  # fmt: skip
    return rows


def descended(loss: Callable[[float], float]) -> dict[float, float]:
    """The losses of rates, each sqrt(2) from the next, until the lowest is not at an end of them (or TRIED)."""
    rates = {step: START * 2 ** (step / 2) for step in range(-TRIED, TRIED + 1)}
    found = {step: loss(rates[step]) for step in (0, -1, 1)}
    while (best := min(found, key=lambda step: found[step])) in {min(found), max(found)} and abs(best) < TRIED:
        step = best + (1 if best > 0 else -1)
        found[step] = loss(rates[step])
    return {rates[step]: found[step] for step in sorted(found)}


def timed(models: list[Model], folder: Path | None, rounds: int) -> dict[tuple[str, int], float]:
    """Seconds of a training step of each family and width: all in turns, so many times, the median."""
    steps = {(model.family.name, model.width): step_of(model, folder) for model in models}
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in steps}
    for _ in track(range(rounds + 1), "times", console=CONSOLE):  # the first of all is not counted
        for key, step in steps.items():
            began = time.perf_counter()
            step()
            taken[key].append(time.perf_counter() - began)
    return {key: statistics.median(found[1:]) for key, found in taken.items()}


def step_of(model: Model, folder: Path | None) -> Callable[[], object]:
    """A training step on the first batch."""
    data, chosen = loaded(folder), recipe(model, START, 1)
    torch.manual_seed(0)
    built, task = chosen.build(data).train(), chosen.task(data)
    batch = task.batches(torch.Generator().manual_seed(0))[0]
    optimizer = torch.optim.AdamW(built.parameters(), lr=START)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(built, batch, torch.device("cpu")).total.backward()
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
        "commits": sorted({row["environment"]["commit"] for row in rows}),
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
