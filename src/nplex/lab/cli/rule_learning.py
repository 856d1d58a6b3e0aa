"""The verb that learns a known product from examples: rule learn."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from nplex.cli.terminal import messages, print_table, refuse, refusing
from nplex.lab.cli.training import Force, check_run
from nplex.lab.run_folder import RunFolder

Named = Annotated[
    str,
    typer.Argument(
        help="quaternion, 'clifford(3,0)', 'cyclic(5)', 'matrices(2)', ...; rotation, rotation-pure, rotation-axis, "
        "rotation-real; 'random(4)'; or a table in a .json file.",
        metavar="ALGEBRA",
    ),
]
Size = Annotated[int | None, typer.Option(help="Of the learned rule; the algebra's own if left out.", metavar="N")]
Rank = Annotated[
    int | None, typer.Option(help="Learn an algorithm of so many products, not only the table.", metavar="R")
]
Count = Annotated[int, typer.Option(help="How many products are shown.", metavar="COUNT")]
Noise = Annotated[float, typer.Option(help="On the results, as a share of them: .01 is 1 %.", metavar="SHARE")]
Block = Annotated[int, typer.Option(help="Side of the blocks, as in a layer; 1 for plain numbers.", metavar="SIDE")]
Starts = Annotated[int, typer.Option(help="Random starts, at most, where one may fail.", metavar="COUNT")]
Seeds = Annotated[
    list[int] | None, typer.Option(help="One or more: of the examples and first values.", metavar="SEED...")
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="A folder for files; without it none.")]


def learn(  # noqa: PLR0913 - options of the command line
    algebra: Named,
    n: Size = None,
    rank: Rank = None,
    examples: Count = 1000,
    noise: Noise = 0.0,
    block: Block = 1,
    starts: Starts = 20,
    seed: Seeds = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Learn a known product from examples by gradients, and print what was learned beside the truth.

    With --rank an algorithm is learned: matrices(2) with 7 products is Strassen's up to a change of basis. It is
    rounded to small numbers, checked exactly and printed as formulas. With --out DIR writes result.json, result.md,
    rule.safetensors (the table over training), curve.png and tables.gif.

    Examples:
      nplex rule learn quaternion

      nplex rule learn 'matrices(2)' --rank 7 --out runs/strassen

      nplex rule learn octonion --noise .01 --examples 500 --seed 0 1 2

      nplex rule learn quaternion --n 3
    """
    seeds = sorted(set(seed or [0]))
    place = None if out is None else RunFolder(out, force=force, resumable=False)
    check_run([], seeds, place or RunFolder(Path()))
    if force and place is None:
        refuse("--force deletes what --out holds: give --out DIR too")
    with refusing():
        from nplex.lab.recipes import rule_files, rule_text
        from nplex.lab.recipes.rules import RuleLearning, checked
        from nplex.lab.recipes.rules import learn as learned_from

        recipe = RuleLearning(algebra, n, rank, examples, noise, block, starts=starts)
        checked(recipe)
        if place is not None:
            rule_files.check_figures()
            place.open()
            rule_files.note(place.folder, recipe, seeds)
        with progress(len(seeds), starts if rank else 1) as report:
            learned = [learned_from(recipe, each, report(each)) for each in seeds]
        if place is not None:
            rule_files.write(place.folder, recipe, learned)
    print(rule_files.headline(recipe, learned[0]))
    print_table(rule_text.rows(learned))
    print(rule_text.explained(learned[0]))
    print(f"\n{rule_text.beside(learned[0])}")
    if text := next(filter(None, map(rule_text.algorithm, learned)), ""):
        print(f"\n{text}")
    if place is not None:
        messages.print(f"tables, curve and animation are in {place.folder}", soft_wrap=True)


@contextmanager
def progress(seeds: int, starts: int) -> Iterator[Callable[[int], Callable[[int, int, float], None]]]:
    """A bar of the seeds where stderr is a terminal; what the running start came to beside it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=messages, disable=not messages.is_terminal, transient=True) as shown:
        bar, done = shown.add_task("", total=seeds), 0

        def of(seed: int) -> Callable[[int, int, float], None]:
            nonlocal done
            at, done = done, done + 1

            def report(start: int, step: int, loss: float) -> None:
                which = f", start {start + 1} of {starts} at most" if starts > 1 else ""
                shown.update(bar, completed=at, description=f"seed {seed}{which}: step {step:,}, loss {loss:.1e}")

            return report

        yield of
