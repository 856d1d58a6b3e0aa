"""Verbs that train: compare, run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nplex.cli.terminal import messages, print_table, refuse, refusing
from nplex.place import COMPARISON, Place

if TYPE_CHECKING:
    from nplex.recipes.agreement import Data, Recipe
    from nplex.train import Report

TWIN = "n (learned, as 4), n:R (learned at rank R, as 4:7), or an algebra (quaternion, clifford(3,0,0))"
RULE = f"dense, {TWIN}"
Task = Annotated[str, typer.Argument(help="The experiment: agreement.", metavar="TASK")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="DIR",
        help="A folder with train, dev and test .tsv or .tsv.gz, a line each: label (VBZ or VBP) TAB words TAB "
        "source. Without it the built-in set.",
    ),
]  # fmt: skip
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Passes over the training examples; the recipe's own if left out.")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run folder; runs/... if left out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what the run folder holds.")]
Force = Annotated[bool, typer.Option("--force", help="Delete what the run folder holds and start anew.")]


def compare(
    task: Task,
    rule: Annotated[list[str], typer.Option(help=f"Any number of: {RULE}.", metavar="RULE...")],
    seed: Annotated[
        list[int] | None, typer.Option(help="One or more; each rule runs with each.", metavar="SEED...")
    ] = None,
    data: DataOption = None,
    epochs: Epochs = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train a model with each rule on the same data and print what was saved and what it cost.

    Writes into the run folder: compare.json, compare.md, compare.png, and for each rule and seed a folder with
    settings.json, result.json, vocabulary.json and model.safetensors. Ctrl-C stops after the running step;
    --resume goes on to the same bits.

    Examples:
      nplex compare agreement --rule dense 2 4 8

      nplex compare agreement --rule dense quaternion 4 4:7 4:4 --seed 0 1 2 --out runs/rules

      nplex compare agreement --rule dense 4 --data my/folder --epochs 3
    """
    seeds = sorted(set(seed or [0]))
    folder = out or Path("runs") / f"{task}-compare"
    place = Place(folder, resume, force)
    recipe, loaded = _prepare(task, rule, seeds, data, epochs, place)
    from nplex import checkpoint, experiment, plot

    with _interruptible(place), _progress() as report:
        summary = experiment.compare(recipe, rule, seeds, loaded, place.folder, report)
    checkpoint.write_text(place.folder / COMPARISON[1], summary.markdown())
    plot.comparison(summary, place.folder / COMPARISON[2])
    print_table(summary.table())
    messages.print(f"tables, figure and models are in {place.folder}", soft_wrap=True)


def run(
    task: Task,
    rule: Annotated[str, typer.Option(help=f"One of: {RULE}.", metavar="RULE")] = "4",
    seed: Annotated[int, typer.Option(help="Of first values and of the order of examples.")] = 0,
    data: DataOption = None,
    epochs: Epochs = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
) -> None:
    """Train one model and print its result.

    Examples:
      nplex run agreement --rule 4

      nplex run agreement --rule quaternion --seed 1 --out runs/quaternion

      nplex run agreement --rule 4:7 --out runs/fast --resume
    """
    folder = out or Path("runs") / f"{task}-{rule.replace(':', '-')}-seed{seed}"
    place = Place(folder, resume, force)
    recipe, loaded = _prepare(task, [rule], [seed], data, epochs, place)
    from nplex import experiment
    from nplex.summary import summarise

    with _interruptible(place), _progress() as report:
        result = experiment.run(recipe, loaded, seed, place.folder, report)
    print_table(summarise([result], [rule], experiment.baseline(loaded)).table())
    messages.print(f"result and model are in {place.folder}", soft_wrap=True)


def _prepare(
    task: str, rules: list[str], seeds: list[int], data: Path | None, epochs: int | None, place: Place
) -> tuple["Recipe", "Data"]:
    """The first rule's recipe and the data; all that can be wrong is told here, before any work."""
    if task != "agreement":
        refuse(f"there is no task {task!r}; there is agreement")
    if place.resume and place.force:
        refuse("--resume goes on with a folder and --force deletes it: give one of them")
    if len(set(rules)) < len(rules):
        refuse(f"each rule may be given once, got {' '.join(rules)}")
    if any(not 0 <= seed < 2**31 for seed in seeds):
        refuse(f"a seed is a number from 0 to {2**31 - 1}, got {' '.join(map(str, seeds))}")
    with refusing():
        import accelerate  # noqa: F401, RUF100 - its absence is told before any work

        from nplex.recipes import agreement

        recipe, *_ = [agreement.agreement(rule) for rule in rules]
        loaded = agreement.load(data, recipe.vocabulary)
        place.open()
    return recipe if epochs is None else agreement.with_epochs(recipe, epochs), loaded


@contextmanager
def _interruptible(place: Place) -> Iterator[None]:
    """Says how to go on after Ctrl-C, and turns damaged run files into one line."""
    from nplex.train import Interrupted

    try:
        with refusing():
            yield
    except (Interrupted, KeyboardInterrupt):
        messages.print(f"stopped; to go on: the same command with --resume --out {place.folder}", soft_wrap=True)
        raise typer.Exit(130) from None


@contextmanager
def _progress() -> Iterator["Report"]:
    """A bar for each run where stderr is a terminal, else a line for each epoch."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(),
    )
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=messages, disable=not messages.is_terminal) as progress:

        def report(label: str, state, steps: int) -> None:
            note = f"{state.tokens / max(state.seconds, 1e-9):,.0f} tokens/s"
            if state.history:
                last = state.history[-1]
                note = f"loss {last['loss']:.3f}  dev {100 * last['accuracy']:.1f} %  {note}"
            if label not in bars:
                bars[label] = progress.add_task(label, total=steps, note=note)
            progress.update(bars[label], completed=state.step, note=note)
            if not messages.is_terminal and state.batch == 0:
                messages.print(f"{label}: epoch {state.epoch}, {note}", soft_wrap=True)

        yield report
