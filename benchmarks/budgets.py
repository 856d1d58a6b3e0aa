"""Is a wider hypercomplex model better than a dense one of the same parameters, or of the same training FLOPs?

    python benchmarks/budgets.py           # not run to its end yet
    python benchmarks/budgets.py --base 64 # an hour and a half beside other programs
    python benchmarks/budgets.py --quick   # tiny models and three steps, to see that it runs; writes no results

The language recipe on bytes, its blocks of each family: dense; learned rules of rank n and of the generic rank; low
rank; two block-diagonal matrices with a permutation between them. For each dense width of BUDGETS each family gets
the width at which (a) the parameters of its blocks, (b) the FLOPs of its training equal the dense model's; all read
the same number of bytes. Each model is tuned alike: a short run with each of RATES, the best on the dev part counts.
Every run has a folder of its own below --out, so that a second call goes on with what is missing. Writes
results/budgets.json, .md and .png. Sizes and counts are in budgets_models.py, table and figure in budgets_page.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from budgets_models import DENSE, Model, Point, batch_shape, check_counts, counted, loaded, points, recipe
from budgets_page import figure, page
from studies import CONSOLE, all_done

from nplex.files import write_json, write_text
from nplex.lab import experiment
from nplex.lab.environment import environment
from nplex.lab.train import Interrupted

RESULTS = Path(__file__).parents[1] / "results"
BUDGETS = (64, 128)  # widths of the dense models that the others are made equal to
WIDTHS = (64, 96, 128, 192, 256)  # of dense models, the curve to compare with
RATES = (1e-3, 3e-3, 1e-2)
TUNING = 5  # a tuning run has a fifth of the steps


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    data: Path | None
    steps: int
    out: Path


@dataclass(frozen=True)
class Job:
    """A model to be tuned and trained."""

    model: Model
    seed: int


def main(
    size: Annotated[int, typer.Option("--bytes", min=10_000, help="That each run reads.")] = 2_048_000,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0; rates are chosen with the first.")] = 1,
    processes: Annotated[int, typer.Option(min=1, help="Models at a time, each of one thread.")] = 1,
    data: Annotated[Path | None, typer.Option(help="A folder; the built-in text if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("runs/budgets"),
    base: Annotated[list[int] | None, typer.Option(help="Dense widths to be equal to; BUDGETS if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Width 32, three steps; writes no results.")] = False,
) -> None:
    """Run what is missing, then print the table and write it with all figures as JSON and a figure."""
    torch.set_num_threads(1)
    steps = TUNING if quick else max(TUNING, size // batch_shape(data)[0])
    study = Study(data, steps, out / "quick" if quick else out)
    check_counts(data, width=32)
    chosen = points(data, *(((32,), (32, 40)) if quick else (tuple(base or BUDGETS), WIDTHS)))
    models = list(dict.fromkeys(point.model for point in chosen))
    jobs = [Job(model, seed) for seed in range(seeds) for model in models]
    try:
        rows = [row for _, row in all_done(done, study, jobs, processes, "budgets")]
    except (Interrupted, KeyboardInterrupt):
        CONSOLE.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    found = summary(study, chosen, rows)
    print(shown := page(found))
    place = (study.out if quick else RESULTS) / "budgets"
    write_json(place.with_suffix(".json"), found)
    write_text(place.with_suffix(".md"), shown + "\n")
    figure(found, place.with_suffix(".png"))


def done(study: Study, job: Job) -> dict:
    """A model's short runs, and the one with the best of their rates; those that are finished are only read."""
    data, folder, model = loaded(study.data), study.out / job.model.folder, job.model
    tuned = {}
    for rate in RATES:
        tuning = recipe(model, rate, study.steps // TUNING)
        run = experiment.run(tuning, data, 0, folder / f"tuning-{rate:g}")
        tuned[rate] = run["history"][-1][tuning.task(data).main]
    rate = min(tuned, key=tuned.__getitem__)
    chosen = recipe(model, rate, study.steps)
    run, size = experiment.run(chosen, data, job.seed, folder / f"seed{job.seed}"), counted(model, study.data)
    return {
        "family": model.family.name, "rule": model.family.rule, "width": model.width, "seed": job.seed,
        "tuning": tuned, "rate": rate, "dev": run["history"][-1][chosen.task(data).main],
        "test": run["scores"]["loss"], "interval": run["interval"], "blocks": size.blocks,
        "parameters": run["parameters"], "flops": size.flops * study.steps, "seconds": run["training_seconds"],
        "bytes": round(run["training_seconds"] * run["training_tokens_per_second"]),
        "recipe": run["recipe"], "environment": run["environment"],
    }  # fmt: skip


def summary(study: Study, chosen: list[Point], rows: list[dict]) -> dict:
    """All figures: the models, and which of them are compared."""
    compared = [
        {"family": p.model.family.name, "width": p.model.width, "base": p.base, "equal": p.equal} for p in chosen
    ]
    return {
        "steps": study.steps, "tuning_steps": study.steps // TUNING, "rates": RATES, "dense": DENSE.name,
        "compared": compared, "models": rows, "environment": environment(),
        "commits": sorted({row["environment"]["commit"] for row in rows}),
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
