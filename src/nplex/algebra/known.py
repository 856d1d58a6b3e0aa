"""The algebras that come ready."""

import itertools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.table import Algebra


def _zeros(n: int) -> Float[Tensor, "n n n"]:
    """On the CPU, whatever default device is set: an algebra is made of numbers."""
    return torch.zeros(n, n, n, dtype=torch.float64, device="cpu")


def _eye(n: int) -> Float[Tensor, "n n"]:
    return torch.eye(n, dtype=torch.float64, device="cpu")


def _build(name: str, units: list[str], table: Float[Tensor, "n n n"], conjugation: Float[Tensor, "n n"]) -> Algebra:
    entries = tuple(tuple(tuple(row) for row in face) for face in table.tolist())
    return Algebra(name, entries, tuple(units), tuple(tuple(row) for row in conjugation.tolist()))


def doubled(algebra: Algebra, name: str, units: list[str], square: float = -1.0) -> Algebra:
    """Cayley-Dickson: `(a, b)(c, d) = (a c + square conj(d) b, d a + b conj(c))`, `conj(a, b) = (conj(a), -b)`.

    Source: Schafer, An Introduction to Nonassociative Algebras (1966), section III.4.
    """
    n, half = algebra.n, algebra.table
    signs = torch.tensor(algebra.conjugation, dtype=torch.float64, device="cpu").diagonal()
    table = _zeros(2 * n)
    table[:n, :n, :n] = half
    # Entry by entry: a matrix product would start torch's threads at import, and forks after it would hang.
    table[n:, :n, n:] = square * signs * half.permute(2, 1, 0)
    table[:n, n:, n:] = half.permute(2, 1, 0)
    table[n:, n:, :n] = half * signs
    return _build(name, units, table + 0.0, torch.diag(torch.cat([signs, signs.new_full((n,), -1.0)])))


def direct(n: int) -> Algebra:
    """R^n: `e_k e_k = e_k`, all other products 0."""
    _positive("direct", n)
    table = _zeros(n)
    table[range(n), range(n), range(n)] = 1.0
    return _build(f"direct({n})", [f"e{k}" for k in range(n)], table, _eye(n))


def cyclic(n: int) -> Algebra:
    """The group algebra of Z/n: `g^k g^j = g^((k + j) mod n)`; multiplying is circular convolution."""
    _positive("cyclic", n)
    table, k = _zeros(n), torch.arange(n, device="cpu")
    table[k[:, None], (k[:, None] + k) % n, k] = 1.0
    inverse = _eye(n)[[-k % n for k in range(n)]]
    return _build(f"cyclic({n})", ["1", "g", *(f"g{k}" for k in range(2, n))][:n], table, inverse)


def matrices(m: int) -> Algebra:
    """All m x m matrices, n = m^2: `E_ab E_bc = E_ac`, all other products 0; the conjugate is the transpose."""
    _positive("matrices", m, 16)
    pairs = list(itertools.product(range(m), repeat=2))
    table = _zeros(m * m)
    for a, b, c in itertools.product(range(m), repeat=3):
        table[pairs.index((a, b)), pairs.index((a, c)), pairs.index((b, c))] = 1.0
    transpose = _eye(m * m)[[pairs.index((b, a)) for a, b in pairs]]
    return _build(f"matrices({m})", [f"E{a + 1}{',' * (m > 9)}{b + 1}" for a, b in pairs], table, transpose)


def clifford(p: int, q: int = 0, r: int = 0) -> Algebra:
    """Cl(p, q, r): p generators square to 1, q to -1, r to 0, different ones anticommute; n = 2^(p+q+r).

    Basis by grade: 1, e1, e2, ..., e12, ... The conjugate reverses products and negates generators.

    Source: Lounesto, Clifford Algebras and Spinors (2001), chapter 14 (there for r = 0).
    """
    for count in (p, q, r):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0 or p + q + r > 6:
            raise ValueError(
                f"clifford(p, q, r) needs numbers of 0 or more that sum to 6 at most, got ({p}, {q}, {r})"
            )
    squares = [1.0] * p + [-1.0] * q + [0.0] * r
    generators = range(len(squares))
    blades = [blade for grade in range(len(squares) + 1) for blade in itertools.combinations(generators, grade)]
    table = _zeros(len(blades))
    for (k, left), (j, right) in itertools.product(enumerate(blades), repeat=2):
        sign = (-1.0) ** sum(a > b for a in left for b in right)
        for generator in set(left) & set(right):
            sign *= squares[generator]
        table[k, blades.index(tuple(sorted(set(left) ^ set(right)))), j] = sign
    signs = [(-1.0) ** (len(blade) * (len(blade) + 1) // 2) for blade in blades]
    units = ["1", *("e" + "".join(str(g + 1) for g in blade) for blade in blades[1:])]
    return _build(f"clifford({p},{q},{r})", units, table, _eye(len(signs)) * torch.tensor(signs, device="cpu"))


def _imaginary(count: int) -> list[str]:
    return ["1", *(f"e{k}" for k in range(1, count))]


real = _build("real", ["1"], _zeros(1) + 1, _eye(1))
complex_ = doubled(real, "complex", ["1", "i"])
split_complex = doubled(real, "split_complex", ["1", "j"], 1.0)
dual = doubled(real, "dual", ["1", "eps"], 0.0)
quaternion = doubled(complex_, "quaternion", ["1", "i", "j", "k"])
split_quaternion = doubled(complex_, "split_quaternion", ["1", "i", "j", "k"], 1.0)
octonion = doubled(quaternion, "octonion", _imaginary(8))
sedenion = doubled(octonion, "sedenion", _imaginary(16))

NAMED: dict[str, Algebra] = {
    algebra.name: algebra
    for algebra in (
        real, complex_, split_complex, dual, quaternion, split_quaternion, octonion, sedenion,
    )
}  # fmt: skip
FAMILIES: dict[str, Callable[..., Algebra]] = {
    "clifford": clifford, "cyclic": cyclic, "matrices": matrices, "direct": direct,
}  # fmt: skip


def named(text: str) -> Algebra:
    """The ready algebra of this name: `quaternion`, `clifford(3,0,0)`, `cyclic(5)`.

    Raises:
        ValueError: there is none of this name, or its numbers are impossible.
    """
    if text in NAMED:
        return NAMED[text]
    family, bracket, rest = text.partition("(")
    numbers = rest.removesuffix(")").split(",")
    if (
        family in FAMILIES
        and bracket
        and rest.endswith(")")
        and all(c.strip().isascii() and c.strip().isdecimal() for c in numbers)
    ):
        try:
            return FAMILIES[family](*(int(c) for c in numbers))
        except TypeError:
            pass
    raise ValueError(
        f"no algebra is called {text!r}; there are {', '.join(NAMED)}, clifford(p,q,r), cyclic(n), matrices(m), "
        f"direct(n)"
    )


def _positive(name: str, n: int, most: int = 256) -> None:
    """Refuses what is not a size; a table of 256 has 16 million numbers."""
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
        raise ValueError(f"{name}(n) needs a whole number from 1 to {most}, got {name}({n!r})")
