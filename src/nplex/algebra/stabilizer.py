"""Changes of basis that leave a table as it is, and those among equal ones that are conditioned best."""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.orbit_descent import normal_matrix

ZERO = 1e-10
STEPS = 20
FIRST_DAMPING = 1e-2


def stabilizer(table: Float[Tensor, "n n n"]) -> Float[Tensor, "m 3 n n"]:
    """An orthonormal basis of all (p, q, r) with `p T + q T + r T = 0`, the Lie algebra of `(P, Q, R) T = T`."""
    n = table.shape[0]
    values, vectors = torch.linalg.eigh(normal_matrix(table[None] / table.norm())[0])
    return vectors[:, values <= ZERO].mT.reshape(-1, 3, n, n)


def best_conditioned(
    bases: Float[Tensor, "b 3 n n"], stabilizers: Float[Tensor, "b m 3 n n"]
) -> Float[Tensor, "b 3 n n"]:
    """The `(P exp p, Q exp q, R exp r)` with the least `sum log(|M| |M^-1|)` over the three, in the Frobenius norm.

    All of these take the table to the same one. The norms are convex along such curves of symmetric p, q, r: a damped
    Newton descent of 20 steps, which comes near to the least. Where p, q, r are nilpotent it is slow; conditions from
    equal bases may differ by 1.4 there.

    Args:
        bases: A batch of bases.
        stabilizers: For each what leaves its table as it is; zeros do nothing.

    Source: Kempf and Ness, The length of vectors in representation spaces (1979).
    """
    symmetric = (stabilizers + stabilizers.mT) / 2
    size = _size(bases)
    damping = torch.full_like(size, FIRST_DAMPING)
    for _ in range(STEPS):
        gradient, curvature = _slopes(bases, symmetric)
        curvature.diagonal(dim1=1, dim2=2).add_(damping[:, None])
        along = torch.linalg.solve_ex(curvature, -gradient[..., None]).result[..., 0]
        moved = bases @ torch.linalg.matrix_exp((along[..., None, None, None] * stabilizers).sum(dim=1))
        reached = _size(moved)
        good = reached < size
        bases = torch.where(good[:, None, None, None], moved, bases)
        size = torch.where(good, reached, size)
        damping = torch.where(good, damping / 4, damping * 8)
    return bases


def _size(bases: Float[Tensor, "b 3 n n"]) -> Float[Tensor, "b"]:
    """`sum log(|M| |M^-1|)`; infinite for what cannot be inverted."""
    inverse = torch.linalg.inv_ex(bases).inverse
    sizes = bases.flatten(2).norm(dim=2).log() + inverse.flatten(2).norm(dim=2).log()
    return sizes.sum(dim=1).nan_to_num(torch.inf, torch.inf)


def _slopes(
    bases: Float[Tensor, "b 3 n n"], symmetric: Float[Tensor, "b m 3 n n"]
) -> tuple[Float[Tensor, "b m"], Float[Tensor, "b m m"]]:
    """Gradient along each of the stabilizer, and a bound of the curvature: `tr(G s)` and `2 tr(s G s)`, G / tr G
    summed over `M^T M` and, with a minus in the gradient, its inverse.
    """
    outward = bases.mT @ bases
    inward = torch.linalg.pinv(outward, hermitian=True)
    outward, inward = (gram / gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] for gram in (outward, inward))
    gradient = ((outward - inward)[:, None] * symmetric).flatten(2).sum(dim=2)
    turned = (outward + inward)[:, None] @ symmetric
    return gradient, 2 * turned.flatten(2) @ symmetric.flatten(2).mT
