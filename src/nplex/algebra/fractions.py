"""Bilinear algorithms in exact fractions: whether they multiply as a table says, and their formulas."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm

Columns = tuple[tuple[Fraction, ...], ...]


@dataclass(frozen=True)
class ExactAlgorithm:
    """`rule[k, i, j] = sum_r encode_component[r][k] * decode[r][i] * encode_input[r][j]` in fractions.

    Attributes:
        encode_component: R columns of n fractions, applied to the left factor.
        encode_input: R columns of n fractions, applied to the right factor.
        decode: R columns of n fractions, applied to the R products.
    """

    encode_component: Columns
    encode_input: Columns
    decode: Columns

    @property
    def n(self) -> int:
        """The dimension of the algebra."""
        return len(self.decode[0])

    @property
    def rank(self) -> int:
        """R, the number of products."""
        return len(self.decode)

    @classmethod
    def from_factors(cls, factors: BilinearAlgorithm) -> "ExactAlgorithm":
        """The same numbers: every float is a fraction."""
        u, v, w = (_columns(factor) for factor in factors)
        return cls(u, v, w)

    def factors(self) -> BilinearAlgorithm:
        """The same algorithm in float64."""
        u, v, w = (
            torch.tensor([[float(c) for c in column] for column in columns], dtype=torch.float64, device="cpu").mT
            for columns in (self.encode_component, self.encode_input, self.decode)
        )
        return BilinearAlgorithm(encode_component=u, encode_input=v, decode=w)

    def in_whole_numbers(self) -> "ExactAlgorithm":
        """Both encoders in whole numbers without a common divisor, the first one positive; decode takes the rest.

        Terms whose product is zero whatever comes in are left as they are.
        """
        terms = zip(self.encode_component, self.encode_input, self.decode, strict=True)
        u, v, w = zip(*(_whole(*term) for term in terms), strict=True)
        return ExactAlgorithm(u, v, w)

    def wrong_entries(self, entries: Sequence[Sequence[Sequence[float]]]) -> int:
        """How many `entries[k][i][j]` differ from the sum of products, as fractions; 0 means exact.

        Raises:
            ValueError: the table has another n.
        """
        n = self.n
        if len(entries) != n:
            raise ValueError(f"expected a table of n = {n} for this algorithm, got one of n = {len(entries)}")
        terms = list(zip(self.encode_component, self.encode_input, self.decode, strict=True))
        return sum(
            sum((u[k] * w[i] * v[j] for u, v, w in terms if u[k] and w[i] and v[j]), Fraction(0))
            != Fraction(entries[k][i][j])
            for k in range(n) for i in range(n) for j in range(n)
        )  # fmt: skip


def _columns(factor: Float[Tensor, "n R"]) -> Columns:
    return tuple(tuple(Fraction(c) for c in column) for column in factor.detach().double().cpu().mT.tolist())


def _whole(
    u: tuple[Fraction, ...], v: tuple[Fraction, ...], w: tuple[Fraction, ...]
) -> tuple[tuple[Fraction, ...], tuple[Fraction, ...], tuple[Fraction, ...]]:
    """One term, its two encoders divided by their content, which decode is multiplied by."""
    if not (any(u) and any(v)):
        return u, v, w
    first, second = _content(u), _content(v)
    return tuple(c / first for c in u), tuple(c / second for c in v), tuple(c * first * second for c in w)


def _content(column: tuple[Fraction, ...]) -> Fraction:
    """The largest number of which all are whole multiples, with the sign of the first one that is not zero."""
    size = Fraction(gcd(*(c.numerator for c in column)), lcm(*(c.denominator for c in column)))
    return size if next(c for c in column if c) > 0 else -size


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
