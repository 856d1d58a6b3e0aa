"""The command line: one function per verb. Results go to stdout, progress and messages to stderr."""

import sys
import warnings
from typing import Annotated

import typer
from rich.text import Text

from nplex import on_start
from nplex.cli import rule
from nplex.cli.adapting import adapt
from nplex.cli.estimating import estimate
from nplex.cli.models import convert, count, fold, preview
from nplex.cli.planning import measure, plan
from nplex.lab.cli import VERBS
from nplex.terminal import STOPPED, debugging, messages

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
for verb in (preview, estimate, convert, adapt, fold, count, *VERBS, plan, measure):
    app.command()(verb)
app.add_typer(rule.app, name="rule")
LISTS = ("--rule", "--seed", "--only", "--all-but", "--n", "--rank", "--algebra", "--goal")


@app.callback(invoke_without_command=True)
def nplex(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from; after a verb too.")] = False,
) -> None:
    """Hypercomplex layers: 1/n of the parameters, for any n, with a multiplication rule that is learned.

    [dim]nplex preview my/model --rule 4[/dim]              what would change in a model on disk, and what would stay

    [dim]nplex compare agreement --rule dense 2 4 8[/dim]   train a dense transformer and its twins, one table
    """
    debugging[:] = [True] * debug
    if version:
        import importlib.metadata

        print(importlib.metadata.version("nplex"))
        raise typer.Exit


def spread(arguments: list[str]) -> list[str]:
    """`--rule a b c` becomes `--rule a --rule b --rule c`, as people write lists; `--debug` comes first.

    Examples:
        >>> spread(["compare", "agreement", "--rule", "dense", "4", "--resume"])
        ['compare', 'agreement', '--rule', 'dense', '--rule', '4', '--resume']
    """
    result: list[str] = ["--debug"] * ("--debug" in arguments)
    option = ""
    for argument in (each for each in arguments if each != "--debug"):
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
    warnings.showwarning = lambda message, *_: messages.print(f"nplex: {message}", markup=False, soft_wrap=True)
    try:
        on_start.end()
        code = app(args=spread(sys.argv[1:]), prog_name="nplex", standalone_mode=False)
        if code == STOPPED:  # typer turns Ctrl-C in a verb into its code
            raise KeyboardInterrupt
        sys.exit(code)
    except typer.TyperException as error:
        if message := error.format_message():  # without arguments the help was printed
            messages.print(Text.assemble(("nplex:", "red"), f" {message} (see nplex --help)"), soft_wrap=True)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        messages.print("stopped")
        sys.exit(STOPPED)
    finally:
        on_start.ignore()  # what is left to do is the interpreter's
