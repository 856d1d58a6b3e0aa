"""An exact algorithm as formulas that a person can compute with."""

from collections.abc import Iterable
from fractions import Fraction

from nplex.algebra.verify import ExactAlgorithm


def formulas(algorithm: ExactAlgorithm) -> str:
    """`m1 = (x0 + x3) (y0 + y3)` for each product, then `z0 = m1 + m4 - m5 + m7` for each part of the result.

    x is the left factor, y the right one, z = x * y; encoders are first brought to whole numbers.

    Examples:
        >>> from nplex.algebra import complex_, known_algorithm
        >>> print(formulas(ExactAlgorithm.from_factors(known_algorithm(complex_))))
        m1 = x0 y0
        m2 = x1 y1
        m3 = (x0 + x1) (y0 + y1)
        z0 = m1 - m2
        z1 = -m1 - m2 + m3
    """
    whole = algorithm.in_whole_numbers()
    lines = [
        f"m{r} = {_bracketed(u, 'x')} {_bracketed(v, 'y')}"
        for r, (u, v) in enumerate(zip(whole.encode_component, whole.encode_input, strict=True), 1)
    ]
    for i in range(whole.n):
        row = ((column[i], f"m{r}") for r, column in enumerate(whole.decode, 1))
        lines.append(f"z{i} = {_sum(row)}")
    return "\n".join(lines)


def additions(algorithm: ExactAlgorithm) -> int:
    """Additions and subtractions in the formulas as they stand, nothing computed once for two of them."""
    columns = (*algorithm.encode_component, *algorithm.encode_input, *zip(*algorithm.decode, strict=True))
    return sum(max(0, sum(map(bool, column)) - 1) for column in columns)


def _bracketed(column: Iterable[Fraction], letter: str) -> str:
    """A sum, in brackets where it is more than a name."""
    text = _sum((c, f"{letter}{k}") for k, c in enumerate(column))
    return text if text.isalnum() and text != "0" else f"({text})"


def _sum(terms: Iterable[tuple[Fraction, str]]) -> str:
    """`m1 - 2 m3 + 1/4 m5`; 0 where nothing is added."""
    text = ""
    for coefficient, name in terms:
        if coefficient:
            size = "" if abs(coefficient) == 1 else f"{abs(coefficient)} "
            sign = (" - " if coefficient < 0 else " + ") if text else ("-" if coefficient < 0 else "")
            text += f"{sign}{size}{name}"
    return text or "0"
