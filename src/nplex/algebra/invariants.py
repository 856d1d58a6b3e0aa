"""What a table is whatever its bases: ranks, and the laws of its isotopes with a unit."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import laws
from nplex.algebra.isotopy import evened
from nplex.algebra.search.bound import lower_bound
from nplex.algebra.unital import Unital, unital_isotopes

Table = Float[Tensor, "n n n"]

ISOTOPES = 5
SEED = 0


@dataclass(frozen=True)
class Invariants:
    """Numbers and defects of a table of norm 1; a defect is 0 where the law holds.

    Attributes:
        rank_at_least: How many products it is proved to need (nplex.algebra.search).
        multilinear_ranks: The ranks of its three flattenings: component, result, input.
        symmetry: `|| T - T' || / || T ||` for T' with component and input exchanged, component and result, result
            and input: in the bases it came in.
        unit: The smallest `|| L_e - 1 ||^2 + || R_e - 1 ||^2` over all e, its root, relative to sqrt(2 n): in the
            bases it came in.
        division: The condition of the best pair of factors u, v that it was normalised with; infinite where not both
            can be divided by, so that no isotope has a unit.
        commutator: `|| x o y - y o x ||` over all units, relative, in isotopes with a unit; None without any. Its
            size depends on the bases, and so may, where the isotope is not associative, whether it is 0.
        associator: `|| (x o y) o z - x o (y o z) ||` likewise; 0 in all bases or in none.
        alternator: the part of it that alternative algebras (octonions) lack.
        hyperdeterminant: at n = 2 Cayley's, which is negative for complex numbers, positive for split ones, 0 for
            dual ones; else None.
        signature: at n = 2 of the quadratic form `x -> det(sum_k x_k T[k])`, up to its sign, which bases change: how
            many of its two squares have one sign and the other, the larger first; else None.

    Source: Albert, Non-associative algebras I (1942), for what isotopes share; de Silva and Lim, Tensor rank and the
    ill-posedness of the best low-rank approximation problem (2008), for the hyperdeterminant.
    """

    rank_at_least: int
    multilinear_ranks: tuple[int, int, int]
    symmetry: tuple[float, float, float]
    unit: float
    division: float
    commutator: float | None
    associator: float | None
    alternator: float | None
    hyperdeterminant: float | None
    signature: tuple[int, int] | None


def invariants(table: Table, tolerance: float = 1e-6) -> Invariants:
    """All of them; ranks count singular values above `tolerance` times the largest.

    The laws are medians over five isotopes, and at n = 2 a form within `tolerance` of a degenerate one counts as it.
    """
    scaled = table / table.norm()
    n = scaled.shape[0]
    ranks = [_rank(scaled.movedim(side, 0).reshape(n, n * n), tolerance) for side in range(3)]
    defects = [float((scaled - scaled.transpose(a, b)).norm()) for a, b in ((0, 2), (0, 1), (1, 2))]
    even, _ = evened(scaled, 2, 1e-3)
    isotopes = unital_isotopes(even, ISOTOPES, torch.Generator("cpu").manual_seed(SEED))
    measured = torch.tensor([_defects(isotope) for isotope in isotopes], dtype=torch.float64)
    kept = measured.median(dim=0).values.tolist() if isotopes else [None, None, None]
    determinant = float(hyperdeterminant(scaled)) if n == 2 else None
    return Invariants(
        rank_at_least=lower_bound(scaled, tolerance).rank,
        multilinear_ranks=(ranks[0], ranks[1], ranks[2]),
        symmetry=(defects[0], defects[1], defects[2]),
        unit=_unit_defect(scaled),
        division=min((isotope.condition for isotope in isotopes), default=float("inf")),
        commutator=kept[0],
        associator=kept[1],
        alternator=kept[2],
        hyperdeterminant=determinant,
        signature=None if n != 2 else _signature(scaled, tolerance),
    )


def hyperdeterminant(table: Table) -> Float[Tensor, ""]:
    """Cayley's: the discriminant `b^2 - 4 a c` of `det(x T[0] + y T[1]) = a x^2 + b x y + c y^2`, n = 2.

    Under changes of basis it is multiplied by `det(P)^2 det(Q)^2 det(R)^2`, so its sign stays.

    Source: Cayley, On the theory of linear transformations (1845).
    """
    a, b, c = _determinant_form(table)
    return b**2 - 4 * a * c


def _determinant_form(table: Table) -> tuple[Tensor, Tensor, Tensor]:
    first, second = torch.linalg.det(table)
    return first, torch.linalg.det(table.sum(dim=0)) - first - second, second


def _signature(table: Table, tolerance: float) -> tuple[int, int]:
    a, b, c = _determinant_form(table)
    values = torch.linalg.eigvalsh(torch.stack([a, b / 2, b / 2, c]).reshape(2, 2))
    small = tolerance * max(float(values.abs().max()), tolerance)
    fewer, more = sorted((int((values > small).sum()), int((values < -small).sum())))
    return more, fewer


def _rank(matrix: Tensor, tolerance: float) -> int:
    values = torch.linalg.svdvals(matrix)
    return int((values > tolerance * values[0]).sum())


def _unit_defect(table: Table) -> float:
    """How far the best e is from a unit."""
    n = table.shape[0]
    equations = torch.cat([table.reshape(n, n * n).mT, table.permute(1, 0, 2).reshape(n * n, n)])
    wanted = torch.eye(n, dtype=table.dtype, device=table.device).reshape(-1).repeat(2)
    found = torch.linalg.lstsq(equations, wanted[:, None], driver="gelsd").solution[:, 0]
    return float((equations @ found - wanted).norm() / (2 * n) ** 0.5)


def _defects(isotope: Unital) -> tuple[float, float, float]:
    """Commutator, associator, and its symmetric part, relative to the products they are made of."""
    table = isotope.table
    commutator = (table - table.transpose(0, 2)).norm() / (2 * table.norm())
    double = torch.einsum("kpl,pim->klmi", table, table)
    associator = laws.associator(table)
    size = 2 * double.norm()
    symmetric = torch.stack([associator + associator.transpose(0, 1), associator + associator.transpose(1, 2)])
    return float(commutator), float(associator.norm() / size), float(symmetric.norm() / (2 * 2**0.5 * size))
