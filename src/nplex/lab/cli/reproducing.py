"""The verb that repeats the paper's tables: reproduce."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nplex.lab.cli.training import Force, Options, Size, check_run, interruptible, prepare, progress
from nplex.lab.run_folder import RunFolder
from nplex.terminal import messages, print_table, refuse, refusing

if TYPE_CHECKING:
    from nplex.lab.recipes.recipe import Data
    from nplex.lab.recipes.tables import Part

What = Annotated[
    str, typer.Argument(help="A table, as inference, or a part of one, as inference-snli.", metavar="[TABLE]")
]
Listing = Annotated[bool, typer.Option("--list", help="Say what each table needs and how long it takes.")]
Folder = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="The folder of all data; --list says what is below it.")
]
Rules = Annotated[list[str] | None, typer.Option("--rule", help="Other rules than the table's.", metavar="RULE...")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Other seeds than the table's.", metavar="SEED...")]
Runs = Annotated[Path, typer.Option("--out", metavar="DIR", help="Each part's runs get a folder below it.")]
Results = Annotated[Path, typer.Option(metavar="DIR", help="Where tables and figures are written.")]


def reproduce(  # noqa: PLR0913 - options of the command line
    table: What = "",
    listing: Listing = False,
    data: Folder = None,
    size: Size = "small",
    rule: Rules = None,
    seed: Seeds = None,
    out: Runs = Path("runs"),
    results: Results = Path("results"),
    force: Force = False,
) -> None:
    """Run the rows of one of the paper's tables and set them beside the published numbers.

    Runs that are done are read, not run again, and one that was stopped goes on where it was. Writes for each part
    NAME.json, NAME.md and NAME.png: scores with seeds, the difference to dense with its interval, the paper's
    numbers, and what differs in data and size.

    Examples:
      nplex reproduce --list

      nplex reproduce agreement --data my/data

      nplex reproduce inference-sick --data my/data --rule dense 5 --seed 0

      nplex reproduce translation-multi30k --data my/data --size paper
    """
    if listing:
        print_table(_listed(data))
        return
    if not table:
        refuse("expected the name of a table; nplex reproduce --list shows them")
    if data is None:
        refuse("the tables need data: give its folder with --data; nplex reproduce --list says what is below it")
    with refusing():
        from nplex.lab.recipes.tables import parts_of

        parts = [
            replace(part, rules=tuple(rule or part.rules), seeds=tuple(sorted(set(seed or part.seeds))))
            for part in parts_of(table)
        ]
    ready = [_ready(part, data, size, RunFolder(out / part.name_of(size), not force, force)) for part in parts]
    for part, loaded in zip(parts, ready, strict=True):
        _done(part, loaded, size, out / part.name_of(size), results)


def _ready(part: "Part", data: Path, size: str, run_folder: RunFolder) -> "Data":
    """The data of a part, its folder made ready; all that can be wrong is told before any work."""
    check_run(list(part.rules), list(part.seeds), run_folder)
    if not (folder := data / part.folder).is_dir():
        refuse(f"{part.name} reads {folder}, which is not a folder; nplex reproduce --list says what it needs")
    options = Options(size, [part.set] if part.set else None, data=folder)
    return prepare(part.task, part.rules, options, run_folder)[1]


def _done(part: "Part", loaded: "Data", size: str, runs: Path, results: Path) -> None:
    from nplex.lab import reproduction as repeated
    from nplex.lab.reproduction.part import write
    from nplex.lab.train import main_process

    with interruptible("the same command goes on"), progress() as report:
        done = repeated.reproduce(part, loaded, size=size, runs=runs, report=report)
    page = write(done, results)
    if main_process():
        print_table(done.table())
        messages.print(f"{part.name}: page, figure and all runs are in {page.with_suffix('')}.*", soft_wrap=True)


def _listed(data: Path | None) -> list[list[str]]:
    """A row for each part: what it runs, what it reads, how long it takes."""
    from nplex.lab.recipes.tables import PARTS

    rows = [["part", "of the paper", "rules", "seeds", "reads DIR/", "small size, one thread, about"]]
    for part in PARTS:
        count = len(part.rules) * len(part.seeds)
        there = "" if data is None else " (there)" if (data / part.folder).is_dir() else " (missing)"
        time = f"{count} x {part.minutes:g} min" if part.minutes else f"{count} runs, not measured"
        rules, column = " ".join(part.rules), part.column or "not in it"
        rows.append([part.name, column, rules, str(len(part.seeds)), part.folder + there, time])
    return rows
