"""Readers of examples: labelled texts in columns, and two files whose lines belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nplex.lab.text.lines import read_lines

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Row:
    """One labelled example: its label, its texts, and what kind of example it is."""

    label: str
    texts: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Columns:
    """What stands in which column of a file: its name in the header, or its number from 0.

    Attributes:
        texts: the columns of the texts.
        labels: the labels in the file, and what each means.
        label: the column of the label.
        source: the column of the kind of example; it may be missing from a line.
        header: whether the first line names the columns.
    """

    texts: tuple[int | str, ...]
    labels: Mapping[str, str]
    label: int | str = 0
    source: int | str | None = None
    header: bool = False


def read_rows(path: Path, columns: Columns) -> list[Row]:
    """Reads tab-separated lines, UTF-8, plain or .gz; an example without a source has the source "all".

    Raises:
        ValueError: a line has other columns, an unknown label or an empty text; names file and line.
    """
    lines = read_lines(path)
    header = [name.strip() for name in lines[0].split("\t")] if columns.header and lines else []
    label, *texts = (_number(path, column, header) for column in (columns.label, *columns.texts))
    source = None if columns.source is None else _number(path, columns.source, header)
    least = max(label, *texts) + 1
    most = None if columns.header or source is None else source + 1
    expected = f"{least} columns or more" if most is None else f"{least} or {most} columns"
    rows = []
    for number, line in list(enumerate(lines, 1))[int(columns.header) :]:
        where, cells = f"{path}, line {number}", [cell.strip() for cell in line.split("\t")]
        if len(cells) < least or (most is not None and len(cells) > most):
            raise ValueError(f"{where}: expected {expected}, got {len(cells)}")
        if cells[label] not in columns.labels:
            known = " or ".join(columns.labels)
            raise ValueError(f"{where}: label must be {known}, got {cells[label][:40]!r}")
        found = tuple(cells[text] for text in texts)
        if not all(found):
            raise ValueError(f"{where}: a text is empty; remove the line")
        kind = cells[source] if source is not None and source < len(cells) else ""
        rows.append(Row(columns.labels[cells[label]], found, kind or "all"))
    if not rows:
        raise ValueError(f"{path} is empty, expected one example a line")
    return rows


def _number(path: Path, column: int | str, header: list[str]) -> int:
    if isinstance(column, int):
        return column
    if column not in header:
        raise ValueError(f"{path}, line 1: expected a header with the column {column}, got {header[:8]}")
    return header.index(column)


def read_parallel(
    source: Path, target: Path, *, members: tuple[str | None, str | None] = (None, None), skip_empty: bool = False
) -> Pairs:
    """Pairs of lines.

    Args:
        source: as read_lines takes it.
        target: the same.
        members: of archives, as read_lines takes them.
        skip_empty: leave out pairs of which one side is empty, rather than refuse them.

    Raises:
        ValueError: the files differ in length, a line is empty, or there is none; names file and line.
    """
    first, second = read_lines(source, members[0]), read_lines(target, members[1])
    if len(first) != len(second):
        raise ValueError(
            f"{source} has {len(first):,} lines and {target} has {len(second):,}: expected as many, line by line"
        )
    pairs = []
    for number, (a, b) in enumerate(zip(first, second, strict=True), 1):
        if a.strip() and b.strip():
            pairs.append((a.strip(), b.strip()))
        elif not skip_empty:
            raise ValueError(f"{source if b.strip() else target}, line {number}: empty; remove it from both files")
    if not pairs:
        raise ValueError(f"{source} and {target} are empty, expected a sentence a line")
    return pairs
