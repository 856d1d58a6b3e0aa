"""Measures of a table that do not depend on its bases: ranks, and the laws of its isotopes with a unit."""

from dataclasses import dataclass
from typing import Any

import torch

from nplex.algebra import laws
from nplex.algebra.identification.bases import Table, balanced, unital_isotopes
from nplex.algebra.search.bound import lower_bound


@dataclass(frozen=True)
class Invariants:
    """Ranks of a table, and by how much its isotopes with a unit break a law: 0 where it holds.

    Attributes:
        rank_at_least: How many products it is proved to need.
        multilinear_ranks: The ranks of its three flattenings: component, result, input.
        commutator: `|| x o y - y o x ||` over all units, relative, in isotopes with a unit; None without any. Its
            size depends on the bases; where it is not associative so may whether it is 0.
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
        measured = [_defects(isotope.table) for isotope in isotopes]
        defects: Any = torch.tensor(measured, device="cpu").median(dim=0).values.tolist() if measured else [None] * 3
        commutator, associator, alternator = defects
        discriminant = None
        if len(table) == 2:  # of det(x T[0] + y T[1]) = a x^2 + b x y + c y^2
            a, c = torch.linalg.det(table).tolist()
            discriminant = (float(torch.linalg.det(table.sum(dim=0))) - a - c) ** 2 - 4 * a * c
        return cls(lower_bound(table, tolerance).rank, ranks, commutator, associator, alternator, discriminant)

    def __str__(self) -> str:
        ranks = " x ".join(map(str, self.multilinear_ranks))
        laws = "no isotope has a unit: not both factors can be divided by"
        if self.commutator is not None:
            laws = f"its isotopes with a unit: commutator {self.commutator:.1g}, associator {self.associator:.1g}, "
            laws += f"alternator {self.alternator:.1g} (0 where the law holds in them)"
        last = "" if self.hyperdeterminant is None else f"\nhyperdeterminant {self.hyperdeterminant:.2g}"
        return f"multilinear ranks {ranks}; at least {self.rank_at_least} products\n{laws}{last}"


def _defects(table: Table) -> tuple[float, float, float]:
    """Commutator, associator, and its symmetric part, relative to the products they are made of."""
    commutator = (table - table.transpose(0, 2)).norm() / (2 * table.norm())
    associator, size = laws.associator(table), 2 * torch.einsum("kpl,pim->klmi", table, table).norm()
    symmetric = torch.stack([associator + associator.transpose(0, 1), associator + associator.transpose(1, 2)])
    return float(commutator), float(associator.norm() / size), float(symmetric.norm() / (2 * 2**0.5 * size))
