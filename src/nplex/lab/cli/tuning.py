"""The verb that searches for a rule: tune."""

import importlib
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
    Shared,
    Size,
    check_run,
    interruptible,
    prepare,
    resuming,
)
from nplex.lab.run_folder import RunFolder

if TYPE_CHECKING:
    from nplex.lab.tuning import Row

Names = Annotated[list[str] | None, typer.Option(metavar="NAME...")]


def tune(  # noqa: PLR0913 - options of the command line
    task: Annotated[
        str, typer.Argument(help="A task of nplex run, or my_module:my_function, which takes a rule.", metavar="TASK")
    ],
    trials: Annotated[int, typer.Option(min=1, help="How many rules are measured in all, dense among them.")] = 12,
    minutes: Annotated[float, typer.Option(min=0, help="No rule is begun after this time.")] = float("inf"),
    n: Annotated[list[str] | None, typer.Option(help="Numbers, or a range as 2..8.", metavar="N...")] = None,
    rank: Annotated[
        list[str] | None, typer.Option(help="Of full, generic, between and n; by default all.", metavar="RANK...")
    ] = None,
    algebra: Annotated[list[str] | None, typer.Option(help="Fixed rules, as quaternion.", metavar="NAME...")] = None,
    goal: Annotated[
        list[str] | None, typer.Option(help="Of size, quality and speed; by default all.", metavar="GOAL...")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="How far below dense is as good; by default the interval of dense.")
    ] = None,
    lower: Annotated[bool, typer.Option("--lower", help="A lower score of the function is the better one.")] = False,
    storage: Annotated[str, typer.Option(help="A database that several processes share.", metavar="URL")] = "",
    seed: Annotated[int, typer.Option(help="Of each run of a task.")] = 0,
    size: Size = "small",
    set_name: SetOption = "",
    data: DataOption = None,
    shared: Shared = False,
    epochs: Epochs = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Search n and rank: which rules no other beats in size, quality and speed?

    Prints all rules that were measured, the one to take and the line of code. Writes tune.json, tune.md and
    tune.png into the run folder. The same command with --resume goes on, with more --trials too; several processes
    with one --storage, each with an --out of its own, share the work.

    Examples:
      nplex tune agreement --trials 12 --n 1..8

      nplex tune agreement --n 2 4 8 --rank full generic --goal size quality --minutes 30

      nplex tune my_module:my_function --trials 20 --storage postgresql://me@host/rules --out runs/second
    """
    place = RunFolder(out or Path("runs") / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', task)}-tune", resume, force)
    check_run([], [seed], place)
    if force and storage:
        refuse("--force deletes a folder, and the shared --storage would be left: take another --seed or database")
    with refusing():
        import optuna  # noqa: F401, RUF100 - its absence is told before any work

        from nplex.lab.recipes.tasks import recipe_of
        from nplex.lab.tuning import Goals, rules_to_try
        from nplex.lab.tuning import tune as search
        from nplex.lab.tuning.pareto import GOALS
        from nplex.lab.tuning.recipe import RecipeObjective
        from nplex.lab.tuning.space import RANKS

        rules = rules_to_try(parse_sizes(n or ["2..8"]), rank or RANKS, algebra or ())
        goals = Goals(tuple(goal or GOALS), lower, margin)
    if ":" in task:
        given = {"--size": size != "small", "--set": set_name, "--data": data, "--epochs": epochs, "--seed": seed,
                 "--shared": shared}  # fmt: skip
        if names := ", ".join(name for name, value in given.items() if value):
            refuse(f"{names} is for tasks, and {task} is a function")
        with refusing():
            objective = load_function(task)
            place.open()
    else:
        if lower:
            refuse("--lower is for functions; a task says itself which scores are better")

        def make() -> Any:
            return [recipe_of(task, rule, size=size, set=set_name) for rule in rules][0]

        recipe, loaded = prepare(make, data, epochs, shared, place)
        objective = RecipeObjective(recipe, loaded, place.folder, seed)
        goals = Goals(goals.which, not recipe.task(loaded).higher, margin)
    with interruptible(resuming(place)), progress(min(trials, len(rules))) as report:
        found = search(
            objective, place.folder, rules=rules, trials=trials, minutes=minutes or 1e-9, goals=goals, storage=storage,
            report=report,
        )  # fmt: skip
    print_table(found.table())
    print(found.advice())
    messages.print(f"tables, figure and runs are in {place.folder}", soft_wrap=True)


def parse_sizes(texts: list[str]) -> list[int]:
    """Numbers and ranges as people write them.

    Raises:
        ValueError: a text is neither.

    Examples:
        >>> parse_sizes(["2..4", "8"])
        [2, 3, 4, 8]
    """
    found: set[int] = set()
    for text in texts:
        match = re.fullmatch(r"(\d{1,3})(?:\.\.(\d{1,3}))?", text)
        if match is None:
            raise ValueError(f"n must be numbers from 1 to 256, or a range as 2..8; got {text!r}")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def load_function(text: str) -> Callable[[str], Any]:
    """The function that `module:name` names, looked for in the current folder too.

    Raises:
        ValueError: there is none.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{text!r} names no function, expected my_module:my_function: {error}") from None
    if not callable(found):
        raise ValueError(f"{text!r} must be a function, got a {type(found).__name__}")
    return found


@contextmanager
def progress(total: int) -> Iterator[Callable[[tuple["Row", ...], str], None]]:
    """A bar of the rules where stderr is a terminal, and a line for each."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    told: set[str] = set()
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as shown:
        bar = shown.add_task("", total=total)

        def report(rows: tuple["Row", ...], running: str) -> None:
            shown.update(bar, completed=len(rows), description=running)
            for row in rows:
                if row.rule not in told and (found := row.measured):
                    numbers = f"{found.parameters:,} parameters, {found.seconds:.3g} s"
                    messages.print(f"{row.rule}: score {found.score:.4g}, {numbers}", soft_wrap=True)
                elif row.rule not in told:
                    messages.print(f"{row.rule}: failed, {row.error}", soft_wrap=True)
                told.add(row.rule)

        yield report
