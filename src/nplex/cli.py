"""The command line: one function per verb. Results go to stdout, progress and messages to stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from nplex.place import COMPARISON, Place

if TYPE_CHECKING:
    from nplex.recipes.agreement import Data, Recipe
    from nplex.train import Report

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
messages = Console(stderr=True, highlight=False, markup=False)
LISTS = ("--rule", "--seed")

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


@app.callback(invoke_without_command=True)
def nplex(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Hypercomplex layers: 1/n of the parameters, for any n, with a multiplication rule that is learned.

    [dim]nplex compare agreement --rule dense 2 4 8[/dim]   train a dense transformer and its twins, one table
    """
    if version:
        import importlib.metadata

        print(importlib.metadata.version("nplex"))
        raise typer.Exit


@app.command()
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
    _print_table(summary.table())
    messages.print(f"tables, figure and models are in {place.folder}", soft_wrap=True)


@app.command()
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
    _print_table(summarise([result], [rule], experiment.baseline(loaded)).table())
    messages.print(f"result and model are in {place.folder}", soft_wrap=True)


@app.command()
def plan(
    in_features: Annotated[int, typer.Argument(min=1, help="Width of the input.")],
    out_features: Annotated[int, typer.Argument(min=1, help="Width of the output.")],
    tokens: Annotated[int, typer.Option(min=0, help="Rows of the input: batch times length; 1 when decoding.")] = 512,
    rule: Annotated[str, typer.Option(help=f"One of: {TWIN}.", metavar="RULE")] = "4",
    training: Annotated[bool, typer.Option("--training", help="Count the gradients too.")] = False,
    prepared: Annotated[bool, typer.Option("--prepared", help="As inside nplex.nn.cached.")] = False,
) -> None:
    """Print what each way to compute a layer would cost on this machine, and which is taken.

    Examples:
      nplex plan 4096 4096 --tokens 1 --rule 8

      nplex plan 512 2048 --rule 4:7 --training
    """
    with _refusing():
        from nplex.convert import parse_rule
        from nplex.ops import plan as make

        if (parsed := parse_rule(rule)) is None:
            _refuse("a dense layer has one way only; give a rule, as --rule 4")
        sizes = {"tokens": tokens, "n": parsed.n, "rank": parsed.rank}
        print(make(in_features, out_features, **sizes, training=training, prepared=prepared))


@app.command()
def measure(device: Annotated[str, typer.Option(help="cpu, cuda, ...", metavar="DEVICE")] = "cpu") -> None:
    """Measure how fast this machine computes, for all later plans: two seconds, best while nothing else runs.

    Examples:
      nplex measure
      OMP_NUM_THREADS=1 nplex measure    # each number of threads has its own numbers
    """
    with _refusing():
        from nplex.ops import machine

        print(found := machine.measure(device))
        machine.save(found, machine.cache_file(), device=device)
    messages.print(f"kept in {machine.cache_file()}", soft_wrap=True)


def _prepare(
    task: str, rules: list[str], seeds: list[int], data: Path | None, epochs: int | None, place: Place
) -> tuple["Recipe", "Data"]:
    """The first rule's recipe and the data; all that can be wrong is told here, before any work."""
    if task != "agreement":
        _refuse(f"there is no task {task!r}; there is agreement")
    if place.resume and place.force:
        _refuse("--resume goes on with a folder and --force deletes it: give one of them")
    if len(set(rules)) < len(rules):
        _refuse(f"each rule may be given once, got {' '.join(rules)}")
    if any(not 0 <= seed < 2**31 for seed in seeds):
        _refuse(f"a seed is a number from 0 to {2**31 - 1}, got {' '.join(map(str, seeds))}")
    with _refusing():
        import accelerate  # noqa: F401, RUF100 - its absence is told before any work

        from nplex.recipes import agreement

        recipe, *_ = [agreement.agreement(rule) for rule in rules]
        loaded = agreement.load(data, recipe.vocabulary)
        place.open()
    return recipe if epochs is None else agreement.with_epochs(recipe, epochs), loaded


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns wrong input into one line and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        _refuse(f"this needs {error.name}, which is not installed: pip install 'nplex[train]'")
    except (ValueError, OSError) as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    messages.print(Text.assemble(("nplex:", "red"), " ", " ".join(message.split())), soft_wrap=True)
    raise typer.Exit(2)


@contextmanager
def _interruptible(place: Place) -> Iterator[None]:
    """Says how to go on after Ctrl-C, and turns damaged run files into one line."""
    from nplex.train import Interrupted

    try:
        with _refusing():
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


def _print_table(rows: list[list[str]]) -> None:
    """A table on stdout; plain text where it is no terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, title in enumerate(rows[0]):
        table.add_column(Text(title), justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def spread(arguments: list[str]) -> list[str]:
    """`--rule a b c` becomes `--rule a --rule b --rule c`, as people write lists.

    Examples:
        >>> spread(["compare", "agreement", "--rule", "dense", "4", "--resume"])
        ['compare', 'agreement', '--rule', 'dense', '--rule', '4', '--resume']
    """
    result: list[str] = []
    option = ""
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in LISTS else ""
            result.append(argument)
        elif option and result[-1] != option:
            result += [option, argument]
        else:
            result.append(argument)
    return result


def main() -> None:
    """Runs the command line: code 0, 2 with one line for wrong input, 130 after Ctrl-C."""
    try:
        sys.exit(app(args=spread(sys.argv[1:]), prog_name="nplex", standalone_mode=False))
    except typer.TyperException as error:
        if message := error.format_message():  # without arguments the help was printed
            messages.print(Text.assemble(("nplex:", "red"), f" {message} (see nplex --help)"), soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        messages.print("stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
