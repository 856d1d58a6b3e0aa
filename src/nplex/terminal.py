"""What all verbs share: messages, refusals, tables, interruptions."""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

__all__ = ["messages", "refuse", "refusing", "print_table", "STOPPED", "TWIN", "EXTRAS", "debugging", "own_code"]

messages = Console(stderr=True, highlight=False, markup=False)
# The exit code after Ctrl-C.
STOPPED = 130
# The extra that brings each package which may be missing.
EXTRAS = {
    "accelerate": "lab", "matplotlib": "lab", "tokenizers": "lab", "sacrebleu": "lab", "optuna": "lab",
    "filelock": "lab", "plotly": "lab", "transformers": "hf", "datasets": "data", "onnx": "onnx",
    "onnxscript": "onnx", "onnxruntime": "onnx", "tensorboard": "log", "triton": "triton",
}  # fmt: skip
debugging: list[bool] = []  # holds something where errors are shown with their traceback
TWIN = "n (learned, as 4), n:R (learned at rank R, as 4:7), or an algebra (quaternion, clifford(3,0,0))"


@contextmanager
def refusing() -> Iterator[None]:
    """Turns wrong input into one line and exit code 2."""
    try:
        yield
    except (ImportError, ValueError, OSError) as error:
        if debugging:
            traceback.print_exc()
        package = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        brought = f"nplex[{EXTRAS[package]}]" if package in EXTRAS else package
        refuse(f"this needs {package}, which is not installed: pip install '{brought}'" if package else str(error))


def refuse(message: str) -> NoReturn:
    """Prints one line and ends with exit code 2."""
    messages.print(Text.assemble(("nplex:", "red"), " ", " ".join(message.split())), soft_wrap=True)
    raise typer.Exit(2)


def own_code(text: str) -> Callable[..., Any]:
    """What my_module:my_function names, in the folder where the command was given, or in Python's path.

    Raises:
        ValueError: it names nothing that can be called, or the module cannot be imported.
    """
    sys.path.insert(0, "")
    module, _, name = text.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"{text!r} names no function, expected my_module:my_function: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ValueError(f"{text!r} must be a function, got a {type(found).__name__}")
    return found


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
