"""What all verbs share: messages, refusals, tables, interruptions."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["messages", "refuse", "refusing", "print_table", "STOPPED", "TWIN"]

messages = Console(stderr=True, highlight=False, markup=False)
# The exit code after Ctrl-C.
STOPPED = 130
# What brings a package that is missing, where it is not the laboratory's extra.
EXTRAS = {"transformers": "hf", "datasets": "data"}
TWIN = "n (learned, as 4), n:R (learned at rank R, as 4:7), or an algebra (quaternion, clifford(3,0,0))"


@contextmanager
def refusing() -> Iterator[None]:
    """Turns wrong input into one line and exit code 2."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(str(error.name), "lab")
        refuse(f"this needs {error.name}, which is not installed: pip install 'nplex[{extra}]'")
    except (ImportError, ValueError, OSError) as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Prints one line and ends with exit code 2."""
    messages.print(Text.assemble(("nplex:", "red"), " ", " ".join(message.split())), soft_wrap=True)
    raise typer.Exit(2)


def print_table(rows: list[list[str]]) -> None:
    """A table on stdout; plain text where it is not a terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for number, title in enumerate(rows[0]):
        table.add_column(Text(title), justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
