"""The verb that gets public data: fetch."""

from pathlib import Path
from typing import Annotated

import typer

from nplex.terminal import messages, refusing

What = Annotated[str, typer.Argument(help="snli, mnli, scitail or multi30k.", metavar="SET")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="For the files; data/SET if left out.")]
Copy = Annotated[
    str,
    typer.Option("--from", metavar="PLACE", help="A folder with a copy (Parquet, JSON lines), or another hub name."),
]  # fmt: skip


def fetch(name: What, out: Out = None, copy: Copy = "") -> None:
    """Download a public data set with Hugging Face's datasets, as files that --data reads.

    Examples:
      nplex fetch snli

      nplex fetch multi30k --out data/multi30k

      nplex run inference --data data/snli
    """
    folder = out or Path("data") / name
    with refusing():
        from nplex.lab.public_sets import SETS
        from nplex.lab.public_sets import fetch as fetched

        with messages.status(f"fetching {name}"):
            fetched(name, folder, copy=copy, report=lambda part, count: messages.print(f"{part}: {count:,} examples"))
    public = SETS[name]
    messages.print(f"licence as stated: {public.licence}", soft_wrap=True)
    print(f"nplex run {public.task} --data {folder}")
