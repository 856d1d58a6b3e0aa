"""Damped Gauss-Newton (Levenberg-Marquardt) for the bases that bring one table nearest to another, many at once.

A move multiplies the bases from the left, `P <- (1 + p) P`: then all that a step needs is the transformed table X
itself, `dX = p X + q X + r X` on the three sides, and damping `|p|^2 + |q|^2 + |r|^2` limits the relative change.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.isotopy import condition, transformed

FIRST_DAMPING = 1e-2
LEAST_DAMPING = 1e-15
# Worse conditioned bases are no change of coordinates that anyone would look through.
MOST_CONDITION = 1000.0


class Nearby(NamedTuple):
    """A batch of bases and the errors they come to.

    Attributes:
        bases: b x 3 x n x n.
        error: b, `|| bases A - T ||`.
    """

    bases: Tensor
    error: Tensor


def descend(
    algebra: Float[Tensor, "n n n"],
    target: Float[Tensor, "n n n"],
    bases: Float[Tensor, "b 3 n n"],
    steps: int,
    *,
    orthogonal: bool = False,
    bounded: bool = False,
) -> Nearby:
    """Lowers `|| bases algebra - target ||` from each of the bases, by that many steps.

    Args:
        algebra: The table that is moved.
        target: The table it shall come near to.
        bases: Where to start.
        steps: Steps of each start.
        orthogonal: Only orthogonal moves, and one for the scale.
        bounded: Refuse steps to a condition above 1000.
    """
    count, n = bases.shape[0], bases.shape[-1]
    here = transformed(bases, algebra.expand(count, n, n, n))
    error = (target - here).flatten(1).norm(dim=1)
    damping = torch.full_like(error, FIRST_DAMPING)
    moves = rigid_moves(n) if orthogonal else None
    for _ in range(steps):
        change = _solved(here, target - here, damping, moves)
        turned = (torch.linalg.matrix_exp(change) if orthogonal else change + torch.eye(n).to(change)) @ bases
        there = transformed(turned, algebra.expand(count, n, n, n))
        reached = (target - there).flatten(1).norm(dim=1)
        good = reached < error
        if bounded:
            good &= condition(turned) <= MOST_CONDITION
        left = reached / error
        ease = torch.where(left < 0.1, 100.0, torch.where(left < 0.7, 5.0, 2.0))
        damping = torch.where(good, (damping / ease).clamp_min(LEAST_DAMPING), damping * 4)
        bases = torch.where(good[:, None, None, None], turned, bases)
        here = torch.where(good[:, None, None, None], there, here)
        error = torch.where(good, reached, error)
    return Nearby(bases, error)


def rigid_moves(n: int) -> Float[Tensor, "unknowns moves"]:
    """A column for each move that keeps angles: skew p, q, r, and one for the scale; orthonormal."""
    above = torch.triu_indices(n, n, 1)
    count = above.shape[1]
    skew = torch.zeros(count, n, n, dtype=torch.float64, device="cpu")
    skew[range(count), above[0], above[1]] = 0.5**0.5
    skew = (skew - skew.mT).reshape(count, n * n)
    scale = torch.zeros(1, 3 * n * n, dtype=torch.float64, device="cpu")
    scale[0, : n * n] = torch.eye(n, dtype=torch.float64, device="cpu").reshape(-1) / n**0.5
    return torch.cat([torch.block_diag(skew, skew, skew), scale]).mT.contiguous()


def normal_matrix(table: Float[Tensor, "b n n n"]) -> Float[Tensor, "b unknowns unknowns"]:
    """`J^T J` of `(p, q, r) -> p X + q X + r X`, 3 n^2 square, from contractions of X with itself.

    Blocks of one side are `[k = l] G[a, c]` with that side's Gram matrix G; of two sides, as p and q,
    `<p_ka, q_ic> = sum_j X[a, i, j] X[k, c, j]`.
    """
    count, n = table.shape[:2]
    matrix = table.new_zeros(count, 3, n, n, 3, n, n)
    for side in range(3):
        unfolded = table.movedim(side + 1, 1).reshape(count, n, n * n)
        gram = unfolded @ unfolded.mT
        for k in range(n):
            matrix[:, side, k, :, side, k, :] = gram
    for first, second, third in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        faces = table.permute(0, first + 1, second + 1, third + 1).reshape(count, n * n, n)
        product = (faces @ faces.mT).reshape(count, n, n, n, n)  # [a, i, k, c]
        matrix[:, first, :, :, second, :, :] = product.permute(0, 3, 1, 2, 4)
        matrix[:, second, :, :, first, :, :] = product.permute(0, 2, 4, 3, 1)
    return matrix.reshape(count, 3 * n * n, 3 * n * n)


def orbit_dimension(table: Float[Tensor, "n n n"]) -> int:
    """The dimension of all `(P, Q, R) T`: the rank of `(p, q, r) -> p T + q T + r T`."""
    return int(torch.linalg.matrix_rank(normal_matrix(table[None] / table.norm())[0], atol=1e-10, hermitian=True))


def _solved(
    here: Float[Tensor, "b n n n"],
    residual: Float[Tensor, "b n n n"],
    damping: Float[Tensor, "b"],
    moves: Float[Tensor, "unknowns moves"] | None,
) -> Float[Tensor, "b 3 n n"]:
    """The damped least squares move towards the residual; nothing where rounding spoils the factorization."""
    count, n = here.shape[:2]
    matrix = normal_matrix(here)
    sides = [(residual.movedim(s, 1).flatten(2) @ here.movedim(s, 1).flatten(2).mT) for s in (1, 2, 3)]
    gradient = torch.stack(sides, dim=1).reshape(count, -1, 1)
    if moves is not None:
        matrix, gradient = moves.mT @ matrix @ moves, moves.mT @ gradient
    weight = damping * here.flatten(1).square().sum(dim=1) / n
    matrix.diagonal(dim1=1, dim2=2).add_(weight[:, None])
    factor, failed = torch.linalg.cholesky_ex(matrix)
    change = torch.cholesky_solve(gradient, factor)
    change = torch.where(failed[:, None, None] == 0, change, 0.0)
    if moves is not None:
        change = moves @ change
    return change.reshape(count, 3, n, n)
