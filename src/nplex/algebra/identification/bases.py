"""Changes of basis on the three sides of a table: random ones, and those that balance it or give it a unit.

Bases are three invertible matrices, stacked 3 x n x n in the order of the table's axes: component, result, input.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import laws

Table = Float[Tensor, "n n n"]
# Pairs of factors that are tried, and the condition beyond which one cannot be divided by.
TRIES, SINGULAR = 64, 1e6


def transformed(bases: Float[Tensor, "*batch 3 n n"], table: Float[Tensor, "*batch n n n"]) -> Tensor:
    """`T'[k, i, j] = sum_abc P[k, a] Q[i, b] R[j, c] T[a, b, c]`, one table for each of a batch of bases.

    Source: Albert, Non-associative algebras I (1942).
    """
    n = table.shape[-1]
    p, q, r = bases.unbind(-3)
    turned = (p @ table.flatten(-2)).unflatten(-1, (n, n))
    return q[..., None, :, :] @ turned @ r.mT[..., None, :, :]


def condition(bases: Float[Tensor, "*batch 3 n n"]) -> Float[Tensor, "*batch"]:
    """`max(|M| |M^-1|)` over the three matrices, in the spectral norm; infinite for what cannot be inverted."""
    values = torch.linalg.svdvals(bases)
    return (values[..., 0] / values[..., -1]).nan_to_num(torch.inf, torch.inf).amax(dim=-1)


def random_orthogonal(count: int, n: int, generator: torch.Generator) -> Float[Tensor, "count n n"]:
    """Draws orthogonal matrices, equally likely everywhere: the Q of normal numbers, its signs made random."""
    q, r = torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64, device="cpu"))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def balanced(table: Table, rounds: int, floor: float = 1e-3) -> tuple[Table, Float[Tensor, "3 n n"]]:
    """Makes the Gram matrices of the three sides even, one after the other; returns the bases that did it, too.

    A round multiplies each side by `(n G / trace G + floor)^(-1/2)`, `G[k, l] = sum_ij T[k, i, j] T[l, i, j]`.
    Between two tables that are balanced there are orthogonal bases where there are any. `floor` bounds how far the
    noise in a weak direction is amplified.

    Source: Kempf and Ness, The length of vectors in representation spaces (1979), for where it ends.
    """
    n = table.shape[0]
    bases = list(torch.eye(n, dtype=table.dtype, device="cpu").expand(3, n, n))
    for side in [0, 1, 2] * rounds:
        unfolded = table.movedim(side, 0).flatten(1)
        gram = unfolded @ unfolded.mT
        values, vectors = torch.linalg.eigh(gram * n / gram.trace())
        even = vectors * (values.clamp_min(0) + floor).rsqrt() @ vectors.mT
        bases[side] = even @ bases[side]
        table = (even @ unfolded).reshape(n, n, n).movedim(0, side)
    norm = table.norm()
    return table / norm, torch.stack([bases[0] / norm, bases[1], bases[2]])


class Unital(NamedTuple):
    """`x o y = T(R_v^-1 x, L_u^-1 y)`, with `R_v x = T(x, v)` and `L_u y = T(u, y)`: its unit is `T(u, v)`.

    The bases `sides = (R_v^T, 1, L_u^T)` take its table back to T.
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
    there it is orthogonal up to its scale.
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
