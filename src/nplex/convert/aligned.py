"""Tables of text."""

from collections.abc import Iterable, Sequence


def aligned(lines: Iterable[Sequence[str]], sides: str) -> list[str]:
    """Lines of cells as columns of one width; `sides` has "<" or ">" for each column.

    Examples:
        >>> aligned([("layer", "n"), ("a", "12")], "<>")
        ['layer   n', 'a      12']
    """
    table = list(lines)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    cells = [zip(line, sides, widths, strict=True) for line in table]
    return ["  ".join(f"{cell:{side}{width}}" for cell, side, width in line).rstrip() for line in cells]
