"""The verb that learns a known product from examples: rule learn."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from nplex.lab.cli.training import Force, check_run
from nplex.lab.run_folder import SETTINGS, RunFolder, Settings
from nplex.terminal import messages, print_table, refuse, refusing

KNOWN = (
    "quaternion, 'clifford(3,0)', 'cyclic(5)', 'matrices(2)', ...; rotation, rotation-pure, rotation-axis, "
    "rotation-real; 'random(4)'; or a table in a .json file."
)
RANK = "Find an algorithm of the learned table with so many products."


def learn(
    algebra: Annotated[str, typer.Argument(help=KNOWN, metavar="ALGEBRA")],
    n: Annotated[int | None, typer.Option(help="Of the learned rule; the algebra's own if left out.")] = None,
    rank: Annotated[int | None, typer.Option(help=RANK)] = None,
    examples: Annotated[int, typer.Option(help="How many examples.")] = 1000,
    noise: Annotated[float, typer.Option(help="On the results, as a share of them: .01 is 1 %.")] = 0.0,
    seed: Annotated[list[int] | None, typer.Option(help="One or more: of examples and first values.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder for files; without it none.")] = None,
    force: Force = False,
) -> None:
    """Learn a known product from examples by gradients, and print what was learned beside the truth.

    --rank finds an algorithm of the learned table: matrices(2) with 7 products is Strassen's up to a change of basis.
    It is rounded to small numbers, checked exactly and printed as formulas. --out DIR writes result.json, result.md,
    rule.safetensors (the table over training) and curve.png.

    Examples:
      nplex rule learn quaternion

      nplex rule learn 'matrices(2)' --rank 7 --out runs/strassen

      nplex rule learn octonion --noise .01 --examples 500 --seed 0 1 2

      nplex rule learn quaternion --n 3
    """
    from rich.progress import track

    seeds = sorted(set(seed or [0]))
    run_folder = None if out is None else RunFolder(out, force=force, resumable=False)
    check_run([], seeds, run_folder or RunFolder(Path()))
    if force and run_folder is None:
        refuse("--force deletes what --out holds: give --out DIR too")
    with refusing():
        from nplex.files import write_json
        from nplex.lab.plot import new_figure
        from nplex.lab.products import RuleLearning, result
        from nplex.lab.products import learn as learned_from

        recipe = RuleLearning(algebra, n, rank, examples, noise)
        recipe.known()
        if run_folder is not None:
            new_figure()  # looks before any work whether figures can be made
            run_folder.open()
            noted = {"learned": recipe.product, "settings": asdict(recipe), "seeds": seeds}
            write_json(run_folder.folder / SETTINGS, Settings("product", noted).json())
        shown = track(seeds, "seeds", console=messages, transient=True, disable=not messages.is_terminal)
        learned = [learned_from(recipe, each) for each in shown]
        if run_folder is not None:
            result.write(run_folder.folder, recipe, learned)
    print(result.headline(recipe, learned[0]))
    print_table(result.rows(learned))
    print(result.explained(learned))
    if run_folder is not None:
        messages.print(f"tables and curve are in {run_folder.folder}", soft_wrap=True)
