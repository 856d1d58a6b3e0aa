"""The verb that searches for a rule: tune."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from nplex.lab.cli import training
from nplex.lab.run_folder import RunFolder
from nplex.lab.scored import Scored
from nplex.terminal import messages, print_table, refuse, refusing

if TYPE_CHECKING:
    from nplex.lab.tuning import Pareto


def tune(  # noqa: PLR0913 - options of the command line
    task: training.TaskName,
    trials: Annotated[int, typer.Option(min=1, help="How many rules are measured in all, dense among them.")] = 12,
    minutes: Annotated[float, typer.Option(min=0.01, help="No rule is begun after this time.")] = float("inf"),
    n: Annotated[list[str], typer.Option(help="Numbers, or a range.", metavar="N...")] = ["2..8"],  # noqa: B006
    rank: Annotated[list[str] | None, typer.Option(help="Of full, generic, between, n.", metavar="RANK...")] = None,
    algebra: Annotated[list[str] | None, typer.Option(help="Fixed rules, as quaternion.", metavar="NAME...")] = None,
    goal: Annotated[list[str] | None, typer.Option(help="Of size, quality, speed.", metavar="GOAL...")] = None,
    margin: Annotated[float | None, typer.Option(help="How far below dense is as good; else its interval.")] = None,
    lower: Annotated[bool, typer.Option("--lower", help="A lower score of the function is the better one.")] = False,
    storage: Annotated[str, typer.Option(help="A database that several processes share.", metavar="URL")] = "",
    seed: Annotated[int, typer.Option(help="Of each run of a task.")] = 0,
    size: training.Size = "small",
    sets: training.SetOption = None,
    settings: training.SettingsOption = None,
    data: training.DataOption = None,
    shared: training.Shared = False,
    epochs: training.Epochs = None,
    out: training.Out = None,
    resume: training.Resume = False,
    force: training.Force = False,
) -> None:
    """Search n and rank: which rules no other beats in size, quality and speed?

    Prints all rules that were measured, the one to take and the line of code. Writes tune.json, tune.md and
    tune.png into the run folder. The same command with --resume goes on, with more --trials too; several processes
    with one --storage, each with an --out of its own, share the work.

    Examples:
      nplex tune agreement --trials 12 --n 1..8

      nplex tune my_module:my_function --trials 20 --storage postgresql://me@host/rules --out runs/second
    """
    run_folder = RunFolder(training.folder_of(out, (task, "tune")), resume, force)
    training.check_run([], [seed], run_folder)
    if force and storage:
        refuse("--force deletes a folder, and the shared --storage would be left: take another --seed or database")
    if (seed and ":" in task) or (lower and ":" not in task):
        refuse("--lower is for functions, as a task knows which scores are better; --seed is for tasks")
    with refusing():
        import optuna  # noqa: F401, RUF100 - its absence is told before any work

        from nplex.lab import tuning
        from nplex.lab.tuning.recipe import RecipeObjective

        goals = tuning.Goals(tuple(goal or tuning.Goals().which), lower, margin)
        rules = tuning.rules_to_try(_sizes(n), rank or tuning.RANKS, algebra or ())
    asked = training.Options(size, sets, settings, data, epochs, shared)
    recipe, loaded = training.prepare(task, rules, asked, run_folder)
    if isinstance(recipe, Scored):
        objective = recipe.function
    else:
        objective = RecipeObjective(recipe, loaded, run_folder.folder, seed)
        goals = replace(goals, lower=not recipe.task(loaded).higher)
    budget = {"rules": rules, "trials": trials, "minutes": minutes}
    with training.interruptible(training.resuming(run_folder)):
        found = tuning.tune(objective, run_folder.folder, **budget, goals=goals, storage=storage, report=_reporting())
    print_table(found.table())
    print(found.advice())
    messages.print(f"tables, figure and runs are in {run_folder.folder}", soft_wrap=True)


def _sizes(texts: list[str]) -> list[int]:
    """["2..4", "8"] gives [2, 3, 4, 8]."""
    found: set[int] = set()
    for text in texts:
        match = re.fullmatch(r"(\d{1,3})(?:\.\.(\d{1,3}))?", text)
        if match is None:
            raise ValueError(f"n must be numbers from 1 to 256, or a range as 2..8; got {text!r}")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def _reporting() -> Callable[["Pareto", str], None]:
    """Prints a line for each rule that is done since the last call."""
    printed: set[str] = set()

    def report(found: "Pareto", running: str) -> None:
        lines = {row.rule: f"score {row.measured.score:.4g}" for row in found.rows}
        lines |= {rule: f"failed, {error}" for rule, error in found.failed.items()}
        for rule in lines.keys() - printed:
            messages.print(f"{rule}: {lines[rule]}", soft_wrap=True)
        printed.update(lines)
        if running and messages.is_terminal:
            messages.print(f"rule {len(lines) + 1}: {running} ...")

    return report
