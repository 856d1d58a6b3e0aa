"""Measures of a table that do not depend on its bases: ranks, and the laws of its isotopes with a unit."""

from dataclasses import dataclass

import torch

from nplex.algebra import laws
from nplex.algebra.identification.bases import Table, balanced
from nplex.algebra.identification.unital import unital_isotopes
from nplex.algebra.search.bound import lower_bound


@dataclass(frozen=True)
class Invariants:
    """Ranks of a table, and by how much its isotopes with a unit break a law: 0 where it holds.

    Attributes:
        rank_at_least: How many products it is proved to need.
        multilinear_ranks: The ranks of its three flattenings: component, result, input.
        commutator: `|| x o y - y o x ||` over all units, relative, in isotopes with a unit; None without any. Its
            size depends on the bases, and so may, where the isotope is not associative, whether it is 0.
        associator: `|| (x o y) o z - x o (y o z) ||` likewise; 0 in all bases or in none.
        alternator: the part of it that alternative algebras (octonions) lack.
        hyperdeterminant: at n = 2 Cayley's, which is negative for complex numbers, positive for split ones, 0 for
            dual ones; else None.

    Source: Albert, Non-associative algebras I (1942), for what isotopes share; Cayley, On the theory of linear
    transformations (1845), for the hyperdeterminant.
    """

    rank_at_least: int
    multilinear_ranks: tuple[int, ...]
    commutator: float | None
    associator: float | None
    alternator: float | None
    hyperdeterminant: float | None

    @classmethod
    def of(cls, table: Table, tolerance: float = 1e-6) -> "Invariants":
        """Of a table of norm 1; ranks count singular values above `tolerance` times the largest."""
        flattenings = [table.movedim(side, 0).flatten(1) for side in range(3)]
        ranks = tuple(int(torch.linalg.matrix_rank(matrix, rtol=tolerance)) for matrix in flattenings)
        isotopes = unital_isotopes(balanced(table, 2)[0], 5, torch.Generator("cpu").manual_seed(0))
        defects = [_defects(isotope.table) for isotope in isotopes]
        laws = torch.tensor(defects, device="cpu").median(dim=0).values.tolist() if defects else [None] * 3
        determinant = float(_hyperdeterminant(table)) if len(table) == 2 else None
        return cls(lower_bound(table, tolerance).rank, ranks, *laws, determinant)

    def __str__(self) -> str:
        text = f"multilinear ranks {' x '.join(map(str, self.multilinear_ranks))}; "
        text += f"at least {self.rank_at_least} products\n"
        if self.commutator is None:
            text += "no isotope has a unit: not both factors can be divided by"
        else:
            text += f"its isotopes with a unit: commutator {self.commutator:.1g}, associator {self.associator:.1g}, "
            text += f"alternator {self.alternator:.1g} (0 where the law holds in them)"
        return text if self.hyperdeterminant is None else f"{text}\nhyperdeterminant {self.hyperdeterminant:.2g}"


def _hyperdeterminant(table: Table) -> torch.Tensor:
    """The discriminant `b^2 - 4 a c` of `det(x T[0] + y T[1]) = a x^2 + b x y + c y^2`."""
    a, c = torch.linalg.det(table)
    return (torch.linalg.det(table.sum(dim=0)) - a - c) ** 2 - 4 * a * c


def _defects(table: Table) -> tuple[float, float, float]:
    """Commutator, associator, and its symmetric part, relative to the products they are made of."""
    commutator = (table - table.transpose(0, 2)).norm() / (2 * table.norm())
    associator, size = laws.associator(table), 2 * torch.einsum("kpl,pim->klmi", table, table).norm()
    symmetric = torch.stack([associator + associator.transpose(0, 1), associator + associator.transpose(1, 2)])
    return float(commutator), float(associator.norm() / size), float(symmetric.norm() / (2 * 2**0.5 * size))
