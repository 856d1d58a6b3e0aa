"""Isotopes with a unit: the change of basis that makes an algebra of a table without one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.isotopy import random_orthogonal

Table = Float[Tensor, "n n n"]

TRIES = 64
# Beyond it a factor counts as one that cannot be divided by.
SINGULAR = 1e6


class Unital(NamedTuple):
    """`x o y = T(R_v^-1 x, L_u^-1 y)`, with `R_v x = T(x, v)` and `L_u y = T(u, y)`: its unit is `T(u, v)`.

    Attributes:
        table: n x n x n, of x o y.
        unit: n.
        sides: 3 x n x n, the bases `(R_v^T, 1, L_u^T)` that take the table back to T.
        condition: the larger one of R_v and L_u.
    """

    table: Tensor
    unit: Tensor
    sides: Tensor
    condition: float


def unital_isotopes(table: Table, count: int, generator: torch.Generator) -> list[Unital]:
    """The best conditioned of many: the i-th best u with the i-th best v among random ones; fewer if none divides.

    All of these are isomorphic to each other, and to every algebra with a unit that T is isotopic to, if that
    algebra is associative. So what they satisfy does not depend on the bases of such a T; of others it may.

    Source: Albert, Non-associative algebras I (1942), for the isomorphism; the isotope is Kaplansky's.
    """
    n = table.shape[0]
    u, v = torch.nn.functional.normalize(
        torch.randn(2, TRIES, n, generator=generator, dtype=torch.float64, device="cpu"), dim=-1
    )
    left = torch.einsum("zk,kij->zij", u, table)
    right = torch.einsum("kij,zj->zik", table, v)
    conditions = [_condition(factors) for factors in (left, right)]
    best = [values.argsort()[:count].tolist() for values in conditions]
    found = []
    for a, b in zip(*best, strict=True):
        worse = max(float(conditions[0][a]), float(conditions[1][b]))
        if worse < SINGULAR:
            over_left, over_right = torch.linalg.inv(left[a]), torch.linalg.inv(right[b])
            product = torch.einsum("kij,ka,jb->aib", table, over_right, over_left)
            sides = torch.stack([right[b].mT, torch.eye(n, dtype=table.dtype, device=table.device), left[a].mT])
            found.append(Unital(product, left[a] @ v[b], sides, worse))
    return found


def random_isomorphisms(
    unital: Unital, algebra: Table, unit: Float[Tensor, "n"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3 n n"]:
    """Bases `(R_v^T g^-T, g, L_u^T g^-T)`, with g from the algebra with that unit to the isotope.

    As every isomorphism does, g takes the unit to the unit, and what has no trace, `tr L_x = 0`, to what has none;
    there it is orthogonal up to its scale. An isomorphism's bases would take the algebra to T exactly.
    """
    ours, theirs = (_frames(*of, count, generator) for of in ((algebra, unit), (unital.table, unital.unit)))
    theirs[..., 1:] *= unital.unit.norm() / unit.norm()
    g = theirs @ torch.linalg.inv(ours)
    over = torch.linalg.inv(g).mT
    return unital.sides @ torch.stack([over, g, over], dim=1)


def _frames(
    table: Table, unit: Float[Tensor, "n"], count: int, generator: torch.Generator
) -> Float[Tensor, "count n n"]:
    """In columns the unit and random orthonormal vectors without trace; of both orientations."""
    trace = torch.einsum("kii->k", table)
    traceless = torch.linalg.svd(trace[None])[2][1:].mT
    turned = traceless @ random_orthogonal(count, len(unit) - 1, generator)
    return torch.cat([unit.expand(count, -1)[..., None], turned], dim=2)


def _condition(matrices: Float[Tensor, "z n n"]) -> Float[Tensor, "z"]:
    values = torch.linalg.svdvals(matrices)
    return (values[:, 0] / values[:, -1]).nan_to_num(torch.inf, torch.inf)
