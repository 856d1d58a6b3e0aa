"""The multiplication table of an algebra, as a value that answers questions about itself."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from reprlib import repr as shortened
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Num
from torch import Tensor

from nplex.algebra import laws


@runtime_checkable
class Array(Protocol):
    """A tensor, of torch or any other library."""

    def tolist(self) -> Any:
        """Its numbers as nested lists."""
        ...


Nested = Sequence[Sequence[Sequence[float | int]]]

# Laws are tensors of n^4 numbers; in larger algebras they are not part of what is printed.
LAWFUL = 64


@dataclass(frozen=True, repr=False)
class Algebra:
    """`e_k * e_j = sum_i table[k, i, j] e_i`: a frozen value, equal to another when the tables are equal.

    Attributes:
        name: what it is called, as in `quaternion` or `clifford(3,0,0)`.
        entries: the table as nested tuples, `entries[k][i][j]`.
        units: the names of the basis elements.
        conjugation: the matrix of the conjugate, `conjugate(x)_i = sum_j conjugation[i][j] x_j`, or None.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> print(quaternion)
        quaternion (n = 4): associative, alternative, normed; unit 1
          * |   1   i   j   k
          --+----------------
          1 |   1   i   j   k
          i |   i  -1   k  -j
          j |   j  -k  -1   i
          k |   k   j  -i  -1
    """

    name: str = field(compare=False)
    entries: tuple[tuple[tuple[float, ...], ...], ...]
    units: tuple[str, ...] = field(compare=False)
    conjugation: tuple[tuple[float, ...], ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        n = len(self.units)
        if n == 0:
            raise ValueError("an algebra needs at least one unit, got none")
        if len(set(self.units)) != n:
            raise ValueError(f"the units must have different names, got {', '.join(self.units)}")
        _check_cube(self.entries, n)
        if self.conjugation is not None and {len(self.conjugation), *map(len, self.conjugation)} != {n}:
            raise ValueError(f"conjugation must be a {n} x {n} matrix, got {self.conjugation}")

    @classmethod
    def from_table(cls, table: Array | Nested, name: str = "own", units: Sequence[str] | None = None) -> "Algebra":
        """An algebra from numbers `table[k, i, j]` = coefficient of e_i in e_k * e_j.

        Args:
            table: n x n x n numbers: a tensor, an array or nested sequences.
            name: what to call it.
            units: the names of the basis elements; without them e0, e1, ...

        Raises:
            ValueError: the table is not a cube or an entry is not finite; the entry is named.
        """
        entries: Nested = table.tolist() if isinstance(table, Array) else table
        if not hasattr(entries, "__len__"):
            raise ValueError(f"a table is n x n x n numbers, got {table!r}")
        if units is not None and len(units) != len(entries):
            raise ValueError(f"a table of {len(entries)} faces needs {len(entries)} units, got {len(units)}")
        _check_cube(entries, len(entries))
        frozen = tuple(tuple(tuple(map(float, row)) for row in face) for face in entries)
        return cls(name, frozen, tuple(units) if units else tuple(f"e{k}" for k in range(len(frozen))))

    @classmethod
    def from_products(
        cls,
        units: Sequence[str],
        products: Mapping[tuple[str, str], str | Mapping[str, float]],
        name: str = "own",
    ) -> "Algebra":
        """An algebra from the products of its units; those with a unit called "1" go without saying.

        Args:
            units: the names of the basis elements.
            products: for each pair (left, right) the product: a unit ("k"), its negative ("-k"), "0", or the
                coefficients of several ({"i": 2.0, "k": -1.0}).
            name: what to call it.

        Raises:
            ValueError: a product is missing, or names what is not a unit; the product is named.

        Examples:
            >>> complex_numbers = Algebra.from_products(["1", "i"], {("i", "i"): "-1"})
            >>> complex_numbers.table[1, :, 1]
            tensor([-1.,  0.], dtype=torch.float64)
        """
        for unit in units:
            if unit == "0" or unit.startswith("-"):
                raise ValueError(f"a unit cannot be called {unit!r}: '0' stands for zero and '-' for the negative")
        table = torch.zeros(len(units), len(units), len(units), dtype=torch.float64, device="cpu")
        for left, right in products:
            for factor in (left, right):
                if factor not in units:
                    raise ValueError(f"{left} * {right}: {factor!r} is not a unit; the units are {', '.join(units)}")
        for k, left in enumerate(units):
            for j, right in enumerate(units):
                for unit, coefficient in _terms(left, right, products, units).items():
                    table[k, list(units).index(unit), j] = coefficient
        return cls.from_table(table, name, units)

    @property
    def n(self) -> int:
        """The dimension."""
        return len(self.units)

    @property
    def table(self) -> Float[Tensor, "n n n"]:
        """A fresh float64 copy of `[k, i, j]`; changing it does not change the algebra."""
        return torch.tensor(self.entries, dtype=torch.float64, device="cpu")

    @property
    def unit(self) -> Float[Tensor, "n"] | None:
        """The e with `e * x = x * e = x`, or None where there is none."""
        return laws.unit(self.table)

    @property
    def laws(self) -> tuple[str, ...]:
        """Which of commutative, associative, alternative, normed hold: computed from the table."""
        return tuple(name for name, holds in laws.LAWS.items() if holds(self.table))

    def multiply(self, x: Num[Tensor, "*batch n"], y: Num[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """`(x * y)_i = sum_kj table[k, i, j] x_k y_j`."""
        dtype = torch.promote_types(torch.result_type(x, y), torch.get_default_dtype())
        table = self.table.to(x.device, dtype)
        return torch.einsum("...k,kij,...j->...i", x.to(dtype), table, y.to(dtype))

    def conjugate(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """The algebra's own involution: signs of the imaginary parts, transpose of a matrix, inverse in a group.

        Raises:
            ValueError: the algebra came without one (a user's own table).
        """
        if self.conjugation is None:
            raise ValueError(
                f"{self.name} has no conjugation; give one: dataclasses.replace(algebra, conjugation=matrix)"
            )
        return x @ torch.tensor(self.conjugation, dtype=torch.float64).to(x).mT

    def __str__(self) -> str:
        unit = self.unit
        kept = f"laws are not looked at above n = {LAWFUL}"
        if self.n <= LAWFUL:
            kept = ", ".join(self.laws) or "none of the usual laws"
        with_unit = "no unit" if unit is None else f"unit {element(unit.tolist(), self.units)}"
        return f"{self.name} (n = {self.n}): {kept}; {with_unit}\n{self.multiplication_table()}"

    def __repr__(self) -> str:
        return f"<Algebra {self.name}, n = {self.n}>"

    def multiplication_table(self) -> str:
        """The products of the units as text: row times column."""
        cells = [[element([f[j] for f in self.entries[k]], self.units) for j in range(self.n)] for k in range(self.n)]
        width = max(len(text) for row in [*cells, list(self.units)] for text in row) + 2
        side = max(len(unit) for unit in self.units)
        lines = [f"  {'*':>{side}} |" + "".join(f"{unit:>{width}}" for unit in self.units)]
        lines.append("  " + "-" * (side + 1) + "+" + "-" * (width * self.n))
        for unit, row in zip(self.units, cells, strict=True):
            lines.append(f"  {unit:>{side}} |" + "".join(f"{cell:>{width}}" for cell in row))
        return "\n".join(lines)


def element(coefficients: Sequence[float], units: Sequence[str]) -> str:
    """`2i-k`: an element of an algebra as text."""
    text = ""
    for coefficient, unit in zip(coefficients, units, strict=True):
        if abs(coefficient) < 1e-12:
            continue
        size = "" if math.isclose(abs(coefficient), 1.0) and unit else f"{abs(coefficient):.4g}"
        separator = "*" if size and unit[:1].isdigit() else ""
        text += ("-" if coefficient < 0 else "+" if text else "") + size + separator + unit
    return text or "0"


def _check_cube(entries: Nested, n: int) -> None:
    """Says which entry is wrong when the numbers are not a finite n x n x n cube."""
    if n == 0:
        raise ValueError("a table needs at least one entry, got an empty one")
    if len(entries) != n:
        raise ValueError(f"table must be {n} x {n} x {n} for {n} units, got {len(entries)} faces")
    for k, face in enumerate(entries):
        if not hasattr(face, "__len__") or len(face) != n:
            raise ValueError(f"table must be {n} x {n} x {n}: table[{k}] must have {n} rows, got {shortened(face)}")
        for i, row in enumerate(face):
            if not hasattr(row, "__len__") or len(row) != n:
                raise ValueError(
                    f"table must be {n} x {n} x {n}: table[{k}][{i}] must have {n} numbers, got {shortened(row)}"
                )
            if _all_finite(row):
                continue
            for j, entry in enumerate(row):
                if not _finite(entry):
                    raise ValueError(f"table[{k}, {i}, {j}] must be a finite number, got {shortened(entry)}")


def _all_finite(row: Sequence[object]) -> bool:
    """Whether all are finite Python floats or integers, as nearly always; large tables have millions of numbers."""
    try:
        return {float, int}.issuperset(map(type, row)) and all(map(math.isfinite, row))  # pyright: ignore[reportArgumentType]
    except OverflowError:
        return False


def _finite(entry: object) -> bool:
    """Whether it is a number that a float can hold; True and False are none."""
    if not isinstance(entry, Real) or isinstance(entry, bool):
        return False
    try:
        return math.isfinite(entry)
    except OverflowError:
        return False


def _terms(
    left: str,
    right: str,
    products: Mapping[tuple[str, str], str | Mapping[str, float]],
    units: Sequence[str],
) -> Mapping[str, float]:
    """The product of two units as coefficients of units."""
    if (left, right) not in products:
        if "1" in (left, right):
            return {right if left == "1" else left: 1.0}
        raise ValueError(f"the product {left} * {right} is missing; give it, as '0' if it is zero")
    product = products[left, right]
    if isinstance(product, str):
        if product == "0":
            return {}
        product = {product[1:]: -1.0} if product.startswith("-") else {product: 1.0}
    if not isinstance(product, Mapping) or not all(isinstance(value, Real) for value in product.values()):
        raise ValueError(
            f"{left} * {right} must be a unit, '0', or numbers for units as {{'i': 2.0}}; got {product!r}"
        )
    for unit in product:
        if unit not in units:
            raise ValueError(f"{left} * {right} = {unit!r}: no such unit; the units are {', '.join(units)}")
    return product
