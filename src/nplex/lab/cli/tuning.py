"""The verb that searches for a rule: tune."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nplex.cli.terminal import messages, print_table, refuse, refusing
from nplex.lab.cli.training import (
    DataOption,
    Epochs,
    Force,
    Out,
    Resume,
    SetOption,
    Size,
    check_run,
    interruptible,
    prepare,
    resuming,
)
from nplex.lab.run_folder import Place

if TYPE_CHECKING:
    from nplex.lab.tuning import Goals, Space
    from nplex.lab.tuning.records import Record

SHARING = {"no": (False,), "yes": (True,), "both": (False, True)}
UNITS = {"s": 1 / 60, "m": 1.0, "h": 60.0}
What = Annotated[
    str, typer.Argument(help="A task of nplex run, or my_module:my_function, which takes a rule.", metavar="TASK")
]
Trials = Annotated[int, typer.Option(min=1, help="How many rules are measured in all, dense among them.")]
BudgetOption = Annotated[
    str, typer.Option(help="No rule is begun after this time, as 90s, 30m or 2h.", metavar="TIME")
]
Sizes = Annotated[list[str] | None, typer.Option(help="Numbers, or a range as 2..8.", metavar="N...")]
Ranks = Annotated[
    list[str] | None, typer.Option(help="Of full, generic, between and n; all if left out.", metavar="RANK...")
]
Algebras = Annotated[list[str] | None, typer.Option(help="Fixed rules to try too, as quaternion.", metavar="NAME...")]
Sharing = Annotated[str, typer.Option(help="One rule for all layers: no, yes or both.")]
GoalOption = Annotated[
    list[str] | None, typer.Option(help="What matters: of size, quality and speed.", metavar="GOAL...")
]
Margin = Annotated[
    float | None, typer.Option(help="How far below dense is as good; the interval of dense if left out.")
]
Lower = Annotated[bool, typer.Option("--lower", help="A lower score of the function is the better one.")]
Prune = Annotated[bool, typer.Option(help="Stop rules that cannot win any more.")]
StorageOption = Annotated[str, typer.Option(help="A database that several machines share.", metavar="URL")]
Processes = Annotated[int, typer.Option(min=1, help="How many rules are measured at once.")]
Seed = Annotated[int, typer.Option(help="Of each run of a task.")]


def tune(  # noqa: PLR0913 - options of the command line
    task: What,
    trials: Trials = 12,
    budget: BudgetOption = "",
    n: Sizes = None,
    rank: Ranks = None,
    algebra: Algebras = None,
    sharing: Sharing = "no",
    goal: GoalOption = None,
    margin: Margin = None,
    lower: Lower = False,
    prune: Prune = True,
    storage: StorageOption = "",
    processes: Processes = 1,
    seed: Seed = 0,
    size: Size = "small",
    set_name: SetOption = "",
    data: DataOption = None,
    epochs: Epochs = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Search n and rank within a budget: which rules no other beats in size, quality and speed?

    Prints all rules that were measured, the one to take and the line of code. Writes tune.json, tune.md and
    tune.png into the run folder. The same command with --resume goes on, with a larger budget too; the same command
    on several machines, with one --storage, shares the work.

    Examples:
      nplex tune agreement --budget 30m --n 1..8

      nplex tune agreement --n 2 4 8 --rank full generic --goal size quality --processes 2

      nplex tune my_module:my_function --trials 20 --storage postgresql://me@host/rules
    """
    place = Place(out or Path("runs") / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', task)}-tune", resume, force)
    check_run([], [seed], place)
    if force and storage:
        refuse("--force deletes a folder, and a shared --storage would be left: take another --seed or database")
    with refusing():
        space, minutes = _space(n, rank, algebra, sharing), parse_minutes(budget)
        _check_optuna()
    wanted = _goals(task, goal, lower, margin)
    if ":" in task:
        given = {"--size": size != "small", "--set": set_name, "--data": data, "--epochs": epochs, "--seed": seed}
        objective, goals = _function(task, wanted, [k for k, v in given.items() if v], place)
    else:
        recipe, _ = prepare(lambda: _checked(task, size, set_name, space), data, epochs, shared=False, place=place)
        objective, goals = _recipe(recipe, data, seed, wanted, place)
    from nplex.lab.tuning import Budget, tune

    with interruptible(resuming(place)), progress(trials) as report:
        front = tune(
            objective, folder=place.folder, space=space, budget=Budget(trials, minutes, prune), goals=goals,
            storage=storage, processes=processes, report=report,
        )  # fmt: skip
    print_table(front.table())
    print(front.advice())
    messages.print(f"tables, figure and runs are in {place.folder}", soft_wrap=True)


def parse_minutes(text: str) -> float | None:
    """A time as people write it; None for no limit.

    Raises:
        ValueError: the text is no time.

    Examples:
        >>> parse_minutes("2h")
        120.0
    """
    if not text:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None or float(found[1]) == 0:
        raise ValueError(f"--budget must be a time as 90s, 30m or 2h; got {text!r}")
    return float(found[1]) * UNITS[found[2]]


def _check_optuna() -> None:
    try:
        import optuna  # noqa: F401, RUF100 - its absence is told before any work
    except ImportError:
        refuse("this needs optuna, which is not installed: pip install 'nplex[search]'")


def _space(n: list[str] | None, rank: list[str] | None, algebra: list[str] | None, sharing: str) -> "Space":
    from nplex.lab.tuning import Space
    from nplex.lab.tuning.space import parse_sizes

    if sharing not in SHARING:
        raise ValueError(f"--sharing must be no, yes or both; got {sharing!r}")
    default = Space()
    return Space(
        parse_sizes(n) if n else default.n, tuple(rank or default.ranks), SHARING[sharing], tuple(algebra or ())
    )


def _goals(task: str, goal: list[str] | None, lower: bool, margin: float | None) -> "Goals":
    from nplex.lab.tuning import Goals

    if lower and ":" not in task:
        refuse("--lower is for functions; a task says itself which scores are better")
    with refusing():
        return Goals(tuple(goal or Goals().which), lower, margin)


def _function(task: str, goals: "Goals", given: list[str], place: Place) -> tuple[Callable[..., Any], "Goals"]:
    """A function of the user's own, from the folder where the command was given."""
    from nplex.lab.tuning.measured import load_function

    if given:
        refuse(f"{', '.join(given)} is for tasks, and {task} is a function")
    if "" not in sys.path:
        sys.path.insert(0, "")
    with refusing():
        objective = load_function(task)
        place.open()
    return objective, goals


def _checked(task: str, size: str, set_name: str, space: "Space") -> Any:
    """The recipe; each rule of the space is one that it can have."""
    from nplex.lab.recipes.tasks import recipe_of

    first, *_ = [recipe_of(task, each.rule, size=size, set=set_name) for each in space.points]
    return first


def _recipe(recipe: Any, data: Path | None, seed: int, goals: "Goals", place: Place) -> tuple[Any, "Goals"]:
    from dataclasses import replace

    from nplex.lab.tuning.recipe import RecipeObjective

    objective = RecipeObjective(recipe, data, place.folder, seed)
    return objective, replace(goals, lower=objective.lower)


@contextmanager
def progress(trials: int) -> Iterator[Callable[[list["Record"]], None]]:
    """A bar of the rules measured where stderr is a terminal, else a line for each."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from nplex.lab.tuning.records import results

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    told: set[str] = set()
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as shown:
        bar = shown.add_task("", total=trials)

        def report(found: list["Record"]) -> None:
            done = results(found)
            running = [_running(r) for r in found if r.state == "running" and not r.answered and r.candidate]
            shown.update(bar, completed=min(len(done), trials), description="   ".join(running))
            for candidate, record in done.items():
                if candidate.key not in told:
                    told.add(candidate.key)
                    messages.print(f"{candidate.key}: {_outcome(record)}", soft_wrap=True)

        yield report


def _running(record: "Record") -> str:
    epochs = f" (epoch {len(record.history)}: {record.history[-1][0]:.4g})" if record.history else ""
    return f"{record.candidate.key if record.candidate else ''}{epochs}"


def _outcome(record: "Record") -> str:
    found = record.measured
    if record.error is not None:
        return f"failed, {record.error}"
    if found is None:
        return f"stopped after {len(record.history)} epochs"
    return f"score {found.score:.4g}, {found.parameters:,} parameters, {found.seconds:.3g} s"
