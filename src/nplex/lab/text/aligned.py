"""Two files whose lines belong together."""

from pathlib import Path

from nplex.lab.text.lines import read_lines


def read_aligned(
    source: Path, target: Path, *, members: tuple[str | None, str | None] = (None, None), skip_empty: bool = False
) -> list[tuple[str, str]]:
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
