"""Isotopes with a unit: the change of basis that makes an algebra of a table without one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import laws
from nplex.algebra.identification.bases import Table, random_orthogonal

TRIES = 64
# Beyond this condition a factor cannot be divided by.
SINGULAR = 1e6


class Unital(NamedTuple):
    """`x o y = T(R_v^-1 x, L_u^-1 y)`, with `R_v x = T(x, v)` and `L_u y = T(u, y)`: its unit is `T(u, v)`.

    Attributes:
        table: n x n x n, of x o y.
        unit: n.
        sides: 3 x n x n, the bases `(R_v^T, 1, L_u^T)` that take the table back to T.
    """

    table: Tensor
    unit: Tensor
    sides: Tensor


def unital_isotopes(table: Table, count: int, generator: torch.Generator) -> list[Unital]:
    """The best conditioned of many: the i-th best u with the i-th best v among random ones; fewer if none divides.

    All of these are isomorphic to each other, and to every associative algebra with a unit that T is isotopic to.

    Source: Albert, Non-associative algebras I (1942), for the isomorphism; the isotope is Kaplansky's.
    """
    n, found = table.shape[0], []
    u, v = torch.randn(2, TRIES, n, generator=generator, dtype=torch.float64, device="cpu")
    left, right = torch.einsum("zk,kij->zij", u, table), torch.einsum("kij,zj->zik", table, v)
    conditions = [torch.linalg.cond(factors).nan_to_num(torch.inf, torch.inf) for factors in (left, right)]
    for a, b in zip(*(values.argsort()[:count].tolist() for values in conditions), strict=True):
        if max(float(conditions[0][a]), float(conditions[1][b])) < SINGULAR:
            inverses = torch.linalg.inv(left[a]), torch.linalg.inv(right[b])
            product = torch.einsum("kij,jb,ka->aib", table, *inverses)
            sides = torch.stack([right[b].mT, torch.eye(n, dtype=table.dtype, device="cpu"), left[a].mT])
            found.append(Unital(product, left[a] @ v[b], sides))
    return found


def starts(
    algebra: Table, isotopes: list[Unital], count: int, generator: torch.Generator
) -> Float[Tensor, "b 3 n n"]:
    """Bases `(R_v^T g^-T, g, L_u^T g^-T)`, with g from the algebra to an isotope; else orthogonal ones.

    As every isomorphism does, g takes the unit to the unit, and what has no trace, `tr L_x = 0`, to what has none;
    there it is orthogonal up to its scale. An isomorphism's bases would take the algebra to T exactly.
    """
    unit = laws.unit(algebra)
    if unit is None or not isotopes:
        return random_orthogonal(3 * count, algebra.shape[0], generator).unflatten(0, (count, 3))
    found = []
    for isotope in isotopes:
        each = -(-count // len(isotopes))
        ours, theirs = (_frames(*of, each, generator) for of in ((algebra, unit), (isotope.table, isotope.unit)))
        theirs[..., 1:] *= isotope.unit.norm() / unit.norm()
        g = theirs @ torch.linalg.inv(ours)
        over = torch.linalg.inv(g).mT
        found.append(isotope.sides @ torch.stack([over, g, over], dim=1))
    return torch.cat(found)[:count]


def _frames(
    table: Table, unit: Float[Tensor, "n"], count: int, generator: torch.Generator
) -> Float[Tensor, "count n n"]:
    """In columns the unit and random orthonormal vectors without trace; of both orientations."""
    traceless = torch.linalg.svd(torch.einsum("kii->k", table)[None])[2][1:].mT
    turned = traceless @ random_orthogonal(count, len(unit) - 1, generator)
    return torch.cat([unit.expand(count, -1)[..., None], turned], dim=2)
