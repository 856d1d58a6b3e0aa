"""Labelled lines: label TAB words TAB source."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nplex.lab.text.lines import read_lines


@dataclass(frozen=True)
class Example:
    """One labelled line: the words, their label, and what kind of example it is."""

    label: str
    words: tuple[str, ...]
    source: str


def find_split(folder: Path, split: str) -> Path:
    """`folder/split.tsv.gz` or `folder/split.tsv`.

    Raises:
        FileNotFoundError: neither is there; says what a data folder holds.
    """
    for ending in (".tsv.gz", ".tsv"):
        if (folder / (split + ending)).is_file():
            return folder / (split + ending)
    raise FileNotFoundError(
        f"{folder} has no {split}.tsv or {split}.tsv.gz; a data folder holds train, dev and test, "
        f"one example a line: label TAB words TAB source"
    )


def read_labelled(path: Path, labels: Sequence[str]) -> list[Example]:
    """Reads `label TAB words TAB source` lines, UTF-8, plain or .gz; the source may be left out.

    Raises:
        ValueError: a line has other columns, an unknown label or no words; names file and line.
    """
    examples = []
    for number, line in enumerate(read_lines(path), 1):
        columns = line.split("\t")
        if len(columns) not in (2, 3):
            raise ValueError(
                f"{path}, line {number}: expected label TAB words TAB source, got {len(columns)} columns"
            )
        if columns[0] not in labels:
            raise ValueError(f"{path}, line {number}: label must be {' or '.join(labels)}, got {columns[0][:40]!r}")
        words = tuple(columns[1].split())
        if not words:
            raise ValueError(f"{path}, line {number}: no words; remove the line")
        examples.append(Example(columns[0], words, columns[2] if len(columns) == 3 else "all"))
    if not examples:
        raise ValueError(f"{path} is empty, expected one example a line: label TAB words TAB source")
    return examples
