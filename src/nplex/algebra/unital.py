"""Isotopes with a unit: the change of basis that makes an algebra of a table without one."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

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
    algebra is associative. So what is measured here does not depend on the bases of T.

    Source: Albert, Non-associative algebras I (1942), theorem 12, for the isomorphism; the isotope is Kaplansky's.
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
            sides = torch.stack([right[b].mT, torch.eye(n).to(table), left[a].mT])
            found.append(Unital(product, left[a] @ v[b], sides, worse))
    return found


def random_isomorphisms(
    unital: Unital, unit: Float[Tensor, "n"], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3 n n"]:
    """Bases `(R_v^T g^-T, g, L_u^T g^-T)`, with g orthogonal up to its scale and `g unit = unital.unit`.

    If g were an isomorphism, these would take the algebra with that unit to T exactly.
    """
    n = unit.shape[0]
    drawn = torch.randn(2, count, n, n, generator=generator, dtype=torch.float64, device="cpu")
    for frames, first in zip(drawn, (unit, unital.unit), strict=True):
        frames[:, :, 0] = first
    q, r = torch.linalg.qr(drawn)
    q[..., 0] *= r[..., 0, 0].sign()[..., None]
    g, scale = q[1] @ q[0].mT, unital.unit.norm() / unit.norm()
    return unital.sides @ torch.stack([g / scale, g * scale, g / scale], dim=1)


def _condition(matrices: Float[Tensor, "z n n"]) -> Float[Tensor, "z"]:
    values = torch.linalg.svdvals(matrices)
    return (values[:, 0] / values[:, -1]).nan_to_num(torch.inf)
