"""The known algebras that a table is compared with: one for each class up to changes of basis."""

import functools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import known
from nplex.algebra.table import Algebra

# Sizes at which tables are compared.
LARGEST = 9


class Known(NamedTuple):
    """An algebra up to changes of basis.

    Attributes:
        name: of its first.
        aliases: others that are the same up to changes of basis.
        table: of norm 1.
        codimension: by how many equations the tables that it becomes are cut out of all.
        rank: how many products it needs, where that is known, else None.
    """

    name: str
    aliases: tuple[str, ...]
    table: Tensor
    codimension: int
    rank: int | None


@functools.cache
def classes(n: int) -> tuple[Known, ...]:
    """All of them at n = 1 and 2; the usual ones at 3, 4 and 8; families of any size up to n = 9; none above.

    Ranks are 2 n less the number of factors for R[x]/f (Winograd, Some bilinear forms whose multiplicative complexity
    depends on the field of constants, 1977), sums of these for direct sums of up to four, and 7 for 2 x 2 matrices
    and 8 for quaternions (Hopcroft and Kerr, 1971; de Groote, On the complexity of quaternion multiplication, 1975).
    """
    listed = {1: _one, 2: _two, 3: _three, 4: _four, 8: _eight}.get(n, lambda: _families(n) if n <= LARGEST else [])
    found = []
    for first, table, rank in listed():
        name, *aliases = first.split(" = ")
        scaled = table / table.norm()
        found.append(Known(name, tuple(aliases), scaled, n**3 - _dimension(scaled), rank))
    return tuple(found)


_Row = tuple[str, Float[Tensor, "n n n"], int | None]


def _one() -> list[_Row]:
    return [("real", known.real.table, 1)]


def _two() -> list[_Row]:
    return [
        ("complex = clifford(0,1)", known.complex_.table, 3),
        ("split_complex = direct(2) = cyclic(2) = clifford(1)", known.direct(2).table, 2),
        ("dual = clifford(0,0,1) = R[x]/x^2", known.dual.table, 3),
    ]


def _three() -> list[_Row]:
    matrices = {("a", "a"): "a", ("a", "b"): "b", ("b", "c"): "b", ("c", "c"): "c"}
    cross = {("a", "b"): "c", ("b", "c"): "a", ("c", "a"): "b", ("b", "a"): "-c", ("c", "b"): "-a", ("a", "c"): "-b"}
    return [
        *_families(3),
        ("real + dual", _sum(known.real, known.dual), 4),
        ("R[x]/x^3", _truncated(3), 5),
        ("triangular 2 x 2 matrices", _products("abc", matrices), 4),
        ("cross product = so(3)", _products("abc", cross), None),
    ]


def _four() -> list[_Row]:
    return [
        ("quaternion = clifford(0,2)", known.quaternion.table, 8),
        ("matrices(2) = split_quaternion = clifford(2) = clifford(1,1)", known.matrices(2).table, 7),
        ("direct(4)", known.direct(4).table, 4),
        ("cyclic(4) = real + real + complex", known.cyclic(4).table, 5),
        ("complex + complex = bicomplex", _sum(known.complex_, known.complex_), 6),
        ("complex x dual", _product(known.complex_, known.dual), 7),
        ("dual + dual = split_complex x dual", _sum(known.dual, known.dual), 6),
        ("clifford(1,0,1)", known.clifford(1, 0, 1).table, 6),
        ("clifford(0,1,1)", known.clifford(0, 1, 1).table, None),
        ("clifford(0,0,2) = exterior algebra of 2", known.clifford(0, 0, 2).table, None),
        ("dual x dual", _product(known.dual, known.dual), 7),
        ("R[x]/x^4", _truncated(4), 7),
    ]


def _eight() -> list[_Row]:
    split = known.doubled(known.quaternion, "split octonion", list(known.octonion.units), 1.0).table
    geometric = {
        "clifford(3) = clifford(1,2) = complex 2 x 2 matrices = complex quaternion": (3, 0, 0),
        "clifford(0,3) = quaternion + quaternion": (0, 3, 0),
        "clifford(2,1) = matrices(2) + matrices(2)": (2, 1, 0),
        "dual quaternion = clifford(0,2,1)": (0, 2, 1),
        "dual 2 x 2 matrices = clifford(2,0,1) = clifford(1,1,1)": (2, 0, 1),
        "clifford(1,0,2)": (1, 0, 2),
        "clifford(0,1,2)": (0, 1, 2),
        "clifford(0,0,3) = exterior algebra of 3": (0, 0, 3),
    }
    return [
        ("octonion", known.octonion.table, None),
        ("split octonion", split, None),
        *((name, known.clifford(*signature).table, None) for name, signature in geometric.items()),
        ("direct(8)", known.direct(8).table, 8),
        ("cyclic(8) = 2 real + 3 complex", known.cyclic(8).table, 11),
        ("4 complex", _sum(*[known.complex_] * 4), 12),
    ]


def _families(n: int) -> list[_Row]:
    """What there is of any size: direct, cyclic, and matrices of a square; x^n - 1 has n // 2 + 1 real factors."""
    cyclic = f"cyclic({n})" + " = real + complex" * (n == 3)
    rows: list[_Row] = [
        (f"direct({n})", known.direct(n).table, n),
        (cyclic, known.cyclic(n).table, 2 * n - n // 2 - 1),
    ]
    m = math.isqrt(n)
    return [*rows, (f"matrices({m})", known.matrices(m).table, None)] if m * m == n else rows


def _sum(*parts: Algebra) -> Float[Tensor, "n n n"]:
    """The direct sum: products within each part, all others 0."""
    n = sum(part.n for part in parts)
    total, at = torch.zeros(n, n, n, dtype=torch.float64, device="cpu"), 0
    for part in parts:
        own = slice(at, at + part.n)
        total[own, own, own], at = part.table, at + part.n
    return total


def _product(left: Algebra, right: Algebra) -> Float[Tensor, "n n n"]:
    """The tensor product, `(a x b)(c x d) = a c x b d`."""
    n = left.n * right.n
    return torch.einsum("kij,lab->kliajb", left.table, right.table).reshape(n, n, n)


def _truncated(n: int) -> Float[Tensor, "n n n"]:
    """R[x]/x^n: `x^k x^j = x^(k + j)`, 0 from n on."""
    powers = torch.arange(n, device="cpu")
    return (powers[:, None, None] + powers == powers[:, None]).double()


def _products(units: str, products: dict[tuple[str, str], str]) -> Float[Tensor, "n n n"]:
    """The table of these products, all others 0."""
    every = {(left, right): "0" for left in units for right in units}
    return Algebra.from_products(list(units), every | products).table


def _dimension(table: Float[Tensor, "n n n"]) -> int:
    """Of all that a table becomes by changes of basis: the rank of `(p, q, r) -> p X + q X + r X`."""
    n = table.shape[0]
    eye = torch.eye(n, dtype=table.dtype, device="cpu")
    forms = "kp,aij->pakij", "ip,kbj->pbkij", "jp,kic->pckij"
    moves = torch.cat([torch.einsum(form, eye, table).reshape(n * n, n**3) for form in forms])
    return int(torch.linalg.matrix_rank(moves, rtol=1e-9))
