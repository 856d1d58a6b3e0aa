"""The verb that makes a page of a run: report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from nplex.terminal import messages, refuse, refusing

What = Annotated[Path, typer.Argument(help="A folder that nplex run, compare or tune wrote.", metavar="RUN")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page; report.html in RUN if left out.")]

Identify = Annotated[
    bool,
    typer.Option(help="Say which known algebras the first layers' rules are, up to n = 4; some seconds each."),
]


def report(run: What, out: Out = None, identify: Identify = True) -> None:
    """Make one HTML page of a run, a comparison or a search; it needs neither network nor server.

    Scores, parameters and speed; learning curves; the learned rules before and after, with a slider over training,
    and which algebras they are.

    Examples:
      nplex report runs/agreement-compare

      nplex report runs/agreement-tune

      nplex report runs/quaternion --out quaternion.html
    """
    with refusing():
        from nplex.lab.reporting import report as reported
        from nplex.lab.run_folder import REPORT

        page = out or run / REPORT
        if page.is_dir():
            refuse(f"{page} is a folder, expected the name of a page, as {page / REPORT}")
        with identifying() if identify else nullcontext() as progress:
            reported(run, page, progress)
    print(f"the page is {page}")


@contextmanager
def identifying() -> Iterator[Callable[[int, int], None]]:
    """A bar where stderr is a terminal."""
    from rich.progress import Progress

    with Progress(console=messages, disable=not messages.is_terminal, transient=True) as shown:
        bar = shown.add_task("identifying rules", total=None)
        yield lambda done, of: shown.update(bar, completed=done, total=of)
