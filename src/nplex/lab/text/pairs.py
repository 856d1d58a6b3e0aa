"""Labelled pairs of sentences in columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nplex.lab.text.lines import read_lines


@dataclass(frozen=True)
class Pair:
    """Two sentences, their label, and what kind of pair it is."""

    label: str
    first: str
    second: str
    source: str


@dataclass(frozen=True)
class Columns:
    """Where things stand in a file of columns.

    Attributes:
        first: the column of the first sentence: its name in the header, or its place from 0.
        second: of the second sentence.
        label: of the label.
        labels: what stands in the file, and what it means.
        source: of the kind of pair, or None.
        header: whether the first line names the columns.
    """

    first: int | str
    second: int | str
    label: int | str
    labels: Mapping[str, str]
    source: int | str | None = None
    header: bool = False


def read_pairs(path: Path, columns: Columns) -> list[Pair]:
    """Reads a TSV file, plain or .gz; columns beyond those that are named may be missing.

    Raises:
        ValueError: a line has too few columns, an unknown label or an empty sentence; names file and line.
    """
    lines = read_lines(path)
    places = _places(path, columns, lines[0].split("\t") if columns.header and lines else [])
    pairs = []
    for number, line in list(enumerate(lines, 1))[int(columns.header) :]:
        cells = [cell.strip() for cell in line.split("\t")]
        needed = max(place for name, place in places.items() if name != "source")
        if len(cells) <= needed:
            raise ValueError(f"{path}, line {number}: expected {needed + 1} columns or more, got {len(cells)}")
        label, first, second = (cells[places[name]] for name in ("label", "first", "second"))
        if label not in columns.labels:
            known = " or ".join(columns.labels)
            raise ValueError(f"{path}, line {number}: label must be {known}, got {label[:40]!r}")
        if not first or not second:
            raise ValueError(f"{path}, line {number}: a sentence is empty; remove the line")
        source = cells[places["source"]] if places.get("source", len(cells)) < len(cells) else "all"
        pairs.append(Pair(columns.labels[label], first, second, source or "all"))
    if not pairs:
        raise ValueError(f"{path} is empty, expected one pair of sentences a line")
    return pairs


def _places(path: Path, columns: Columns, header: list[str]) -> dict[str, int]:
    """The place of each column."""
    wanted = {"first": columns.first, "second": columns.second, "label": columns.label}
    if columns.source is not None:
        wanted["source"] = columns.source
    names = [name.strip() for name in header]
    for column in wanted.values():
        if isinstance(column, str) and column not in names:
            raise ValueError(f"{path}, line 1: expected a header with the column {column}, got {names[:8]}")
    return {key: names.index(column) if isinstance(column, str) else column for key, column in wanted.items()}
