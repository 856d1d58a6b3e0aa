"""Rows of a report in 80 columns, with equal layers folded into one row."""

import math
import re
import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 80
SIDES = "<><<>"
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
WHOLE = re.compile(r"\b(\d+)\b")  # of names


def folded(cells: Sequence[Sequence[str]], sums: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Lines of a table of layers: names, what they were, what they are, parameters; below it what does not fit.

    Where all names fit, layers whose names differ in a number are one row. Otherwise all that are equal are one, and
    their names stand below.

    Args:
        cells: of each layer its name, what it was, what it is, and the remark.
        sums: its parameters before and afterwards.
    """
    for named in (True, False):
        rows, below = _rows(cells, sums, named)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        if sum(widths) + 2 * len(widths) <= WIDTH:
            break
    for row, text in zip(rows, below, strict=True):
        line = "  ".join(
            f"{text:{side}{width}}" for text, side, width in zip(row, SIDES, widths, strict=True) if width
        )
        if len(line) + 2 + len(text) <= WIDTH:
            line, text = f"{line}  {text}", ""
        yield line.rstrip()
        yield from textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")


def _rows(
    cells: Sequence[Sequence[str]], sums: Sequence[tuple[int, int]], named: bool
) -> tuple[list[list[str]], list[str]]:
    """The rows, with names in them or not, and the text below each."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, (name, was, now, remark) in enumerate(cells):
        key = was, now, re.sub(r"\d+\.\d+", "#", remark), _pattern(name) * named
        groups.setdefault(key, []).append(i)
    rows, below = [["layer" if named else "", "" if named else "layers", "was", "now", "parameters"]], [""]
    for (was, now, *_), members in groups.items():
        before, after = (sum(column) for column in zip(*(sums[i] for i in members), strict=True))
        size = f"{before:,}" if before == after else f"{before:,} -> {after:,}"
        names: dict[str, list[str]] = {}
        for i in members:
            names.setdefault(_pattern(cells[i][0]), []).append(cells[i][0])
        label = ", ".join(map(_names, names.values()))
        remark = spanned([cells[i][3] for i in members])
        rows.append([
            label * named,
            f"{len(members)} x" * (len(members) > 1 or not named),
            was,
            _short(was, now),
            size,
        ])
        below.append(": ".join(filter(None, (label * (not named), remark))))
    return rows, below


def _pattern(name: str) -> str:
    return WHOLE.sub("#", name)


def _names(names: list[str]) -> str:
    """Names that differ in numbers as one; listed where numbers of several places would say other names too."""
    parts = [*zip(*map(WHOLE.split, names), strict=True)]
    several = math.prod(len(set(column)) for column in parts)
    return "".join(map(_spanned, parts)) if several == len(names) else ", ".join(names)


def spanned(texts: Sequence[str]) -> str:
    """One text for several that differ in their numbers: those from the least to the largest, or `*` with gaps.

    Examples:
        >>> spanned(["layers.0.up", "layers.1.up", "layers.2.up"]), spanned(["error 0.84", "error 0.86"])
        ('layers.0-2.up', 'error 0.84-0.86')
    """
    return "".join(map(_spanned, zip(*map(NUMBER.split, texts), strict=True)))


def _spanned(column: Sequence[str]) -> str:
    values = sorted(set(column), key=lambda text: (len(text), text))
    if len(values) == 1:
        return values[0]
    is_whole = all(map(str.isdecimal, values))
    has_gaps = is_whole and int(values[-1]) - int(values[0]) >= len(values)
    return "*" if has_gaps else f"{values[0]}-{values[-1]}"


def _short(was: str, now: str) -> str:
    """What is new in what a layer is: `rule=4` of `Linear(64, 256, rule=4)`."""
    if now.startswith(f"{was[:-1]}, "):
        return now[len(was) + 1 : -1]
    return found[0] if (found := re.search(r"low_rank=\d+", now)) else now
