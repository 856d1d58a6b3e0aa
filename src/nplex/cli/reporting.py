"""The verb that makes a page of a run: report."""

from pathlib import Path
from typing import Annotated

import typer

from nplex.cli.terminal import refuse, refusing

What = Annotated[Path, typer.Argument(help="A folder that nplex run or nplex compare wrote.", metavar="RUN")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="The page; report.html in RUN if left out.")]


def report(run: What, out: Out = None) -> None:
    """Make one HTML page of a run or a comparison; it needs neither network nor server.

    Scores, parameters and speed; learning curves; the learned rules before and after, with a slider over training.

    Examples:
      nplex report runs/agreement-compare

      nplex report runs/quaternion --out quaternion.html
    """
    with refusing():
        from nplex.place import REPORT
        from nplex.report import report as reported

        place = out or run / REPORT
        if place.is_dir():
            refuse(f"{place} is a folder, expected the name of a page, as {place / REPORT}")
        reported(run, place)
    print(f"the page is {place}")
