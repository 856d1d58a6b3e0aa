"""The algebras that a rule is compared with: one for each class up to changes of basis."""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import known
from nplex.algebra.stabilizer import stabilizer
from nplex.algebra.table import Algebra

# Sizes at which distances are measured.
LARGEST = 9


class Orbit(NamedTuple):
    """An algebra up to changes of basis.

    Attributes:
        name: of its first.
        aliases: others that are the same up to changes of basis.
        algebra: its table, of norm 1.
        stabilizer: what leaves it as it is, m x 3 x n x n (nplex.algebra.stabilizer).
        rank: how many products it needs, where that is known, else None.
    """

    name: str
    aliases: tuple[str, ...]
    algebra: Tensor
    stabilizer: Tensor
    rank: int | None

    @property
    def dimension(self) -> int:
        """Of the set of all tables it becomes: of all bases less the ones that leave it as it is."""
        return 3 * self.algebra.shape[0] ** 2 - len(self.stabilizer)

    @property
    def codimension(self) -> int:
        """By how many equations its tables are cut out of all."""
        return self.algebra.shape[0] ** 3 - self.dimension


@functools.lru_cache(maxsize=16)
def orbits(n: int) -> tuple[Orbit, ...]:
    """Every class that has a table in nplex.algebra.known, and a few sums and products of those; none above n = 9.

    Ranks: 2 n less the number of distinct irreducible factors for algebras R[x]/f (Winograd, Some bilinear forms
    whose multiplicative complexity depends on the field of constants, 1977); 8 for quaternions (Howell and Lafon, The
    complexity of the quaternion product, 1975); 7 for 2 x 2 matrices (Winograd, On multiplication of 2 x 2 matrices,
    1971); where nplex.algebra.find reaches 2 n less the number of maximal two-sided ideals, that (Alder and Strassen,
    On the algorithmic complexity of associative algebras, 1981).
    """
    listed = {
        1: _one, 2: _two, 3: _three, 4: _four, 8: _eight,
    }.get(n, lambda: _families(n) if n <= LARGEST else [])  # fmt: skip
    found = []
    for name, aliases, table, rank in listed():
        scaled = table / table.norm()
        found.append(Orbit(name, aliases, scaled, stabilizer(scaled), rank))
    return tuple(found)


_Row = tuple[str, tuple[str, ...], Tensor, int | None]


def _one() -> list[_Row]:
    return [("real", (), known.real.table, 1)]


def _two() -> list[_Row]:
    return [
        ("complex", ("clifford(0,1)",), known.complex_.table, 3),
        ("split_complex", ("direct(2)", "cyclic(2)", "clifford(1)"), known.direct(2).table, 2),
        ("dual", ("clifford(0,0,1)", "R[x]/x^2"), known.dual.table, 3),
    ]


def _three() -> list[_Row]:
    return [
        *_families(3),
        ("real + dual", (), _sum(known.real, known.dual), 4),
        ("R[x]/x^3", (), _truncated(3), 5),
        ("triangular 2 x 2 matrices", (), _triangular(), 4),
        ("cross product", ("so(3)",), _cross_product(), None),
    ]


def _four() -> list[_Row]:
    return [
        ("quaternion", ("clifford(0,2)",), known.quaternion.table, 8),
        ("matrices(2)", ("split_quaternion", "clifford(2)", "clifford(1,1)"), known.matrices(2).table, 7),
        ("direct(4)", (), known.direct(4).table, 4),
        ("cyclic(4)", ("real + real + complex",), known.cyclic(4).table, 5),
        ("complex + complex", ("bicomplex",), _sum(known.complex_, known.complex_), 6),
        ("complex x dual", (), _product(known.complex_, known.dual), 7),
        ("dual + dual", ("split_complex x dual",), _sum(known.dual, known.dual), 6),
        ("clifford(1,0,1)", (), known.clifford(1, 0, 1).table, 6),
        ("clifford(0,1,1)", (), known.clifford(0, 1, 1).table, None),
        ("clifford(0,0,2)", ("exterior algebra of 2",), known.clifford(0, 0, 2).table, None),
        ("dual x dual", (), _product(known.dual, known.dual), 7),
        ("R[x]/x^4", (), _truncated(4), 7),
    ]


def _eight() -> list[_Row]:
    return [
        ("octonion", (), known.octonion.table, None),
        ("split octonion", (), _split_octonion(), None),
        ("clifford(3)", ("clifford(1,2)", "complex 2 x 2 matrices", "complex quaternion"), _clifford(3), None),
        ("clifford(0,3)", ("quaternion + quaternion",), _clifford(0, 3), None),
        ("clifford(2,1)", ("matrices(2) + matrices(2)",), _clifford(2, 1), None),
        ("dual quaternion", ("clifford(0,2,1)",), _clifford(0, 2, 1), None),
        ("dual 2 x 2 matrices", ("clifford(2,0,1)", "clifford(1,1,1)"), _clifford(2, 0, 1), None),
        ("clifford(1,0,2)", (), _clifford(1, 0, 2), None),
        ("clifford(0,1,2)", (), _clifford(0, 1, 2), None),
        ("clifford(0,0,3)", ("exterior algebra of 3",), _clifford(0, 0, 3), None),
        ("direct(8)", (), known.direct(8).table, 8),
        ("cyclic(8)", ("2 real + 3 complex",), known.cyclic(8).table, 11),
        ("4 complex", (), _sum(*[known.complex_] * 4), 12),
    ]


def _families(n: int) -> list[_Row]:
    """What there is of any size: direct, cyclic, and matrices of a square."""
    factors = n // 2 + 1  # of x^n - 1 over the reals
    rows: list[_Row] = [
        (f"direct({n})", (), known.direct(n).table, n),
        (f"cyclic({n})", ("real + complex",) if n == 3 else (), known.cyclic(n).table, 2 * n - factors),
    ]
    m = math.isqrt(n)
    if m * m == n:
        rows.append((f"matrices({m})", (), known.matrices(m).table, None))
    return rows


def _clifford(p: int, q: int = 0, r: int = 0) -> Float[Tensor, "n n n"]:
    return known.clifford(p, q, r).table


def _sum(*parts: Algebra) -> Float[Tensor, "n n n"]:
    """The direct sum: products within each part, all others 0."""
    total = torch.zeros((sum(part.n for part in parts),) * 3, dtype=torch.float64, device="cpu")
    at = 0
    for part in parts:
        total[at : at + part.n, at : at + part.n, at : at + part.n] = part.table
        at += part.n
    return total


def _product(left: Algebra, right: Algebra) -> Float[Tensor, "n n n"]:
    """The tensor product, `(a x b)(c x d) = a c x b d`."""
    n = left.n * right.n
    return torch.einsum("kij,lab->kliajb", left.table, right.table).reshape(n, n, n)


def _truncated(n: int) -> Float[Tensor, "n n n"]:
    """R[x]/x^n: `x^k x^j = x^(k + j)`, 0 from n on."""
    table = torch.zeros(n, n, n, dtype=torch.float64, device="cpu")
    for k in range(n):
        for j in range(n - k):
            table[k, k + j, j] = 1.0
    return table


def _triangular() -> Float[Tensor, "n n n"]:
    """The matrices [[a, b], [0, c]], in the basis E11, E12, E22."""
    table = torch.zeros(3, 3, 3, dtype=torch.float64, device="cpu")
    for k, i, j in ((0, 0, 0), (0, 1, 1), (1, 1, 2), (2, 2, 2)):
        table[k, i, j] = 1.0
    return table


def _cross_product() -> Float[Tensor, "n n n"]:
    """`e1 x e2 = e3` and so on round; no unit."""
    table = torch.zeros(3, 3, 3, dtype=torch.float64, device="cpu")
    for k, j, i in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        table[k, i, j], table[j, i, k] = 1.0, -1.0
    return table


def _split_octonion() -> Float[Tensor, "n n n"]:
    """Cayley-Dickson on the quaternions with a square of +1: `(a, b)(c, d) = (a c + conj(d) b, d a + b conj(c))`.

    Source: Schafer, An Introduction to Nonassociative Algebras (1966), section III.4.
    """
    table = known.octonion.table
    table[4:, :4, 4:] *= -1
    return table
