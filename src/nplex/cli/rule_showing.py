"""nplex rule show: a multiplication table in the terminal, and as figures."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nplex.terminal import messages, refuse, refusing

if TYPE_CHECKING:
    from rich.text import Text

    from nplex.algebra import Algebra

UNITS = (
    "white", "bright_red", "bright_green", "bright_blue", "bright_yellow", "bright_magenta", "bright_cyan", "red",
)  # fmt: skip
COLD, WARM = (40, 110, 220), (225, 90, 30)  # of negative and positive numbers
ACROSS = 100  # letters that faces side by side may take
What = Annotated[
    str,
    typer.Argument(
        metavar="RULE",
        help="An algebra's name, as quaternion or clifford(3); or a file: of a model, of a run, or numbers as JSON.",
    ),
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="PATTERN...", help="Rules of the file whose name matches.")
]


def show(
    rule: What,
    only: Only = None,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write table.png, weight.png and, of factors, factors.png.")
    ] = None,
) -> None:
    """Print a multiplication table in colour; of a file the tables of its rules.

    Examples:
      nplex rule show quaternion

      nplex rule show 'clifford(2,1)' --figures pictures

      nplex rule show runs/agreement-4/rules.safetensors --only '*up.rule, epoch 3'
    """
    with refusing():
        found = rules_named(rule, only)
        if figures is not None:
            _check_figures(found, figures)
        for name, value in found.items():
            _print(name, value)
        if figures is not None:
            _draw(found, figures)


def rules_named(rule: str, only: list[str] | None) -> dict[str, Any]:
    """The algebra of that name, or the rules of a file whose names match; a file called as an algebra is ./NAME.

    Raises:
        ValueError: there is no such algebra and no rule in the file, or no name matches.
        FileNotFoundError: there is no file of that name either.
    """
    from nplex.algebra import named
    from nplex.stored_rules import stored_rules

    try:
        algebra = named(rule)
    except ValueError as error:
        if not Path(rule).exists() and "/" not in rule and not Path(rule).suffix:
            raise ValueError(f"{error}; and there is no file {rule}") from None
    else:
        if only:
            raise ValueError(f"--only chooses among the rules of a file, and {rule} is an algebra; leave it out")
        return {rule: algebra}
    found = stored_rules(Path(rule))
    chosen = {name: value for name, value in found.items() if any(fnmatchcase(name, each) for each in only or ["*"])}
    if not chosen:
        raise ValueError(f"no rule of {rule} matches {', '.join(only or [])}; there are {', '.join(found)}")
    return chosen


def _print(name: str, rule: Any) -> None:
    from rich.console import Console

    from nplex.algebra import Algebra, as_table

    console = Console(highlight=False, soft_wrap=True)
    if isinstance(rule, Algebra):
        console.print(str(rule).partition("\n")[0], markup=False)
        console.print(_products(rule))
        return
    table = as_table(rule)
    rank = "" if table is rule else f", {rule.rank} products"
    console.print(f"{name}: n = {len(table)}{rank}, norm {float(table.norm()):.4g}", markup=False)
    console.print(_faces(table.tolist()))


def _products(algebra: "Algebra") -> "Text":
    """The products of units, each unit in its colour; what is a mixture stays as it is."""
    import re

    from rich.text import Text

    text = Text(algebra.multiplication_table())
    for number, unit in enumerate(algebra.units):
        text.highlight_regex(rf"(?<![\w,]){re.escape(unit)}(?![\w,])", f"bold {UNITS[number % len(UNITS)]}")
    return text


def _faces(table: Sequence[Sequence[Sequence[float]]]) -> "Text":
    """Faces side by side, numbers on a ground that is the stronger the larger they are."""
    from rich.text import Text

    n, largest = len(table), max(abs(x) for face in table for row in face for x in row) or 1.0
    width = 6 * n + 3
    together = max(1, ACROSS // width)
    text = Text()
    for first in range(0, n, together):
        faces = range(first, min(n, first + together))
        text.append("".join(f"  {f'rule[{k}]':<{width - 2}}" for k in faces).rstrip() + "\n", "bold")
        for i in range(n):
            for k in faces:
                text.append("  ")
                for x in table[k][i]:
                    text.append(f"{x:6.2f}", _ground(x / largest))
                text.append(" ")
            text.rstrip()
            text.append("\n")
    return text


def _ground(share: float) -> str:
    """A colour behind a number from -1 to 1."""
    end = WARM if share > 0 else COLD
    red, green, blue = (round(abs(share) * part) for part in end)
    return f"white on rgb({red},{green},{blue})"


def _check_figures(found: dict[str, Any], folder: Path) -> None:
    """Refuses what cannot be drawn, before anything is printed."""
    if len(found) > 1:
        refuse(f"figures are of one rule; choose with --only: {', '.join(found)}")
    if folder.exists() and not folder.is_dir():
        refuse(f"--figures must be a folder, {folder} is a file")


def _draw(found: dict[str, Any], folder: Path) -> None:
    from nplex.algebra import BilinearAlgorithm
    from nplex.figures import show, write_figure

    (rule,) = found.values()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("table", "weight", "factors") if isinstance(rule, BilinearAlgorithm) else ("table", "weight"):
        write_figure(show(rule, name), folder / f"{name}.png")
    messages.print(f"figures are in {folder}", soft_wrap=True)
