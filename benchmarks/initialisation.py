"""What first values, rates, decay and rank of a rule do to a trained model: one factor at a time around the default.

    python benchmarks/initialisation.py --task agreement   # 13 minutes of training on an H200
    python benchmarks/initialisation.py --task inference --set sick --data DIR --epochs 10   # 6 there
    python benchmarks/initialisation.py --task style --set shakespeare --data DIR --n 4 --seeds 1 --epochs 10 \
        --factor scale --factor rate --factor start --factor decay   # 32 there
    python benchmarks/initialisation.py --task language --epochs 1 --steps 600
    python benchmarks/initialisation.py --task agreement --quick   # a few steps, to see that it runs; no results

Every variant of FACTORS, or of those that --factor names, is trained at each n with each seed, in a folder of its own
below --out, so that a second call goes on with what is missing and only sums up what is there. All is the recipe's
but for what the variant says.
Writes results/initialisation-TASK.json, .md and .png; the table and the figure are in initialisation_page.py.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from initialisation_page import figure, page
from studies import CONSOLE, Short, all_done, mixed
from torch import nn

from nplex import algebra
from nplex.files import write_json, write_text
from nplex.lab import experiment
from nplex.lab.environment import environment
from nplex.lab.recipes.tasks import recipe_of
from nplex.lab.summary import machine
from nplex.lab.train import Interrupted
from nplex.nn import LearnedRule

RESULTS = Path(__file__).parents[1] / "results"
ALGEBRAS = {2: algebra.complex_, 4: algebra.quaternion, 8: algebra.octonion}
SMALL = 0.1  # of the other faces' size, near the identity


@dataclass(frozen=True)
class Variant:
    """One way to start and to train; the default is all fields' defaults.

    Attributes:
        scale: what all components are multiplied with before the first step, and so W.
        rate: factor on the learning rate of rules (Schedule.rule_rate).
        start: of rules: random; identity (rule[0] is the identity, the others random); near identity (the others a
            tenth of that, the whole of the same norm); algebra (complex, quaternion, octonion).
        decay: weight decay on rules (Schedule.rule_decay).
        rank: full, n or generic.
    """

    scale: float = 1.0
    rate: float = 1.0
    start: str = "random"
    decay: float = 0.0
    rank: str = "full"

    def rule(self, n: int) -> str:
        """As on the command line."""
        rank = {"full": "", "n": f":{n}", "generic": f":{algebra.generic_rank(n)}"}
        return f"{n}{rank[self.rank]}"

    def folder(self, n: int) -> str:
        """The rule, and what else differs from the default."""
        values = asdict(self) | {"rank": "full"}
        differs = [f"{f.name}-{values[f.name]}" for f in fields(self) if values[f.name] != f.default]
        return "-".join([self.rule(n).replace(":", "-"), *differs]).replace(" ", "-")


DEFAULT = Variant()
FACTORS = {
    "scale of W at the start": {"0.5": Variant(scale=0.5), "1": DEFAULT, "2": Variant(scale=2.0)},
    "rate of the rule, times": {
        "0.1": Variant(rate=0.1), "0.3": Variant(rate=0.3), "1": DEFAULT, "3": Variant(rate=3.0),
    },
    "start of the rule": {
        "random": DEFAULT, "identity": Variant(start="identity"), "near identity": Variant(start="near identity"),
        "algebra": Variant(start="algebra"),
    },
    "decay on the rule": {"0": DEFAULT, "0.01": Variant(decay=0.01), "0.1": Variant(decay=0.1)},
    "rank of the rule": {"n": Variant(rank="n"), "generic": Variant(rank="generic"), "full": DEFAULT},
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """What all runs have in common."""

    task: str
    set: str
    data: Path | None
    epochs: int
    steps: int
    factors: tuple[str, ...]
    out: Path


@dataclass(frozen=True)
class Job:
    """One run."""

    n: int
    variant: Variant
    seed: int


def main(  # noqa: PLR0913 - options of the command line
    task: Annotated[str, typer.Option(help="As on the command line of nplex.")] = "agreement",
    n: Annotated[list[int] | None, typer.Option(help="One or more of 2, 4, 8; all if left out.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many, from 0.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 3,
    steps: Annotated[int, typer.Option(min=0, help="Of each epoch; 0: all its batches.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Runs at a time, each of one thread.")] = 1,
    set_name: Annotated[str, typer.Option("--set", help="A public set in the folder.")] = "",
    data: Annotated[Path | None, typer.Option(help="A folder; the built-in set if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Where the runs are.")] = Path("runs/initialisation"),
    factor: Annotated[list[str] | None, typer.Option(help="First words of FACTORS; all if left out.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="n = 2, one seed, three steps; writes no results.")] = False,
) -> None:
    """Run what is missing, then print the table and write it with all figures as JSON and a figure."""
    torch.set_num_threads(1)
    name = f"{task}-{set_name}" if set_name else task
    sizes = (2,) if quick else tuple(sorted(n or ALGEBRAS))
    epochs, steps, seeds = (1, 3, 1) if quick else (epochs, steps, seeds)
    factors = chosen(factor)
    study = Study(task, set_name, data, epochs, steps, factors, out / ("quick" if quick else "") / name)
    jobs = [Job(size, each, seed) for seed in range(seeds) for size in sizes for each in different(size, factors)]
    try:
        results = {
            (job.n, job.variant.folder(job.n), job.seed): found
            for job, found in all_done(done, study, jobs, processes, name)
        }
    except (Interrupted, KeyboardInterrupt):
        CONSOLE.print("stopped; the same command goes on")
        raise typer.Exit(130) from None
    found = summary(study, sizes, seeds, results)
    print(text := page(found))
    place = (study.out if quick else RESULTS) / f"initialisation-{name}"
    write_json(place.with_suffix(".json"), found)
    write_text(place.with_suffix(".md"), text + "\n")
    figure(found, place.with_suffix(".png"))


def chosen(words: list[str] | None) -> tuple[str, ...]:
    """The factors that begin with these words."""
    if unknown := [word for word in words or [] if not any(name.startswith(word) for name in FACTORS)]:
        raise typer.BadParameter(f"factors are {'; '.join(FACTORS)}; got {unknown[0]}")
    return tuple(name for name in FACTORS if not words or name.startswith(tuple(words)))


def different(n: int, factors: Sequence[str] = tuple(FACTORS)) -> list[Variant]:
    """All variants, each once: the generic rank at n = 2 is 2, which is also n."""
    every = [variant for name in factors for variant in FACTORS[name].values()]
    return list({variant.folder(n): variant for variant in every}.values())


def done(study: Study, job: Job) -> dict:
    """One run: trained, or read."""
    recipe = varied(job.n, job.variant, study)
    folder = study.out / f"{job.variant.folder(job.n)}-seed{job.seed}"
    return experiment.run(recipe, loaded(study), job.seed, folder)


@cache
def loaded(study: Study) -> Any:
    """The data, read once in each process."""
    return recipe_of(study.task, "dense", set=study.set).load(study.data)


def varied(n: int, variant: Variant, study: Study) -> Any:
    """The task's recipe with the variant's rule, schedule and first values."""
    recipe = recipe_of(study.task, variant.rule(n), set=study.set)
    schedule = replace(
        recipe.schedule, epochs=study.epochs, rule_rate=variant.rate, rule_decay=variant.decay, patience=0
    )
    return mixed(Varied, recipe, schedule=schedule, scale=variant.scale, start=variant.start, steps=study.steps)


@dataclass(frozen=True)
class Varied:
    """Stands before a recipe's class: changes the model that it builds, and shortens its epochs."""

    scale: float = 1.0
    start: str = "random"
    steps: int = 0

    def build(self, data: Any) -> nn.Module:
        """The recipe's model with other first values."""
        model = super().build(data)  # pyright: ignore - the recipe's
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.rpartition(".")[2].startswith("components"):
                    parameter.mul_(self.scale)
            for rule in model.modules():
                if isinstance(rule, LearnedRule) and self.start != "random":
                    begin(rule, self.start)
        return model

    def task(self, data: Any) -> Any:
        """The recipe's task, in short epochs."""
        return Short(super().task(data), self.steps)  # pyright: ignore - the recipe's


def begin(rule: LearnedRule, start: str) -> None:
    """Other first values of the same norm, so that the components' size still suits."""
    table = rule.get_parameter("table")
    if start == "algebra":
        table.copy_(LearnedRule(rule.n, start=ALGEBRAS[rule.n]).get_parameter("table"))
        return
    table[0].copy_(torch.eye(rule.n))
    table[1:].mul_(SMALL if start == "near identity" else 1.0)
    table.mul_(rule.initial_norm / table.norm())


def summary(study: Study, sizes: tuple[int, ...], seeds: int, results: dict[tuple[int, str, int], dict]) -> dict:
    """For each factor, value and n: the dev score and the training loss of the last epoch, and the test score."""
    main = varied(sizes[0], DEFAULT, study).task(loaded(study)).main
    rows = []
    for factor in study.factors:
        for value, variant in FACTORS[factor].items():
            for n in sizes:
                runs = [results[n, variant.folder(n), seed] for seed in range(seeds)]
                rows.append({
                    "factor": factor, "value": value, "n": n, "default": variant == DEFAULT,
                    "rule": variant.rule(n), **asdict(variant),
                    "dev": [run["history"][-1][main] for run in runs],
                    "test": [next(iter(run["scores"].values())) for run in runs],
                    "loss": [run["history"][-1]["loss"] for run in runs],
                    "layer_parameters": runs[0]["layer_parameters"],
                    "training_seconds": [run["training_seconds"] for run in runs],
                })  # fmt: skip
    runs = list(results.values())
    return {
        "task": study.task, "set": study.set, "kind": runs[0]["kind"], "score": main, "epochs": study.epochs,
        "steps": study.steps, "seeds": list(range(seeds)), "sizes": list(sizes), "noise": noise(results, main),
        "recipe": results[sizes[0], DEFAULT.folder(sizes[0]), 0]["recipe"], "data": runs[0]["data"], "rows": rows,
        "runs": len(runs), "seconds": sum(run["training_seconds"] for run in runs), "environment": environment(),
        "machines": sorted({machine(run["environment"]) for run in runs}),
        "commits": sorted({run["environment"]["commit"] for run in runs}),
    }  # fmt: skip


def noise(results: dict[tuple[int, str, int], dict], main: str) -> float | None:
    """The deviation of the dev score between seeds, pooled over all variants; None with one seed."""
    scores: dict[tuple[int, str], list[float]] = {}
    for (n, folder, _), run in results.items():
        scores.setdefault((n, folder), []).append(run["history"][-1][main])
    if min(map(len, scores.values())) < 2:
        return None
    return math.sqrt(statistics.mean(statistics.variance(values) for values in scores.values()))


if __name__ == "__main__":
    typer.run(main)
