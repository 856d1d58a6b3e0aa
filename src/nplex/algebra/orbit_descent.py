"""Damped Gauss-Newton (Levenberg-Marquardt) for the bases that bring one table nearest to another, many at once.

A move multiplies the bases from the left, `P <- (1 + p) P`: then all that a step needs is the transformed table X
itself, `dX = p X + q X + r X` on the three sides, and damping `|p|^2 + |q|^2 + |r|^2` limits the relative change.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.isotopy import condition, transformed

FIRST_DAMPING = 1e-2
LEAST_DAMPING = 1e-15
# Worse conditioned bases are no change of coordinates that anyone would look through.
MOST_CONDITION = 1000.0
# A descent ends when so many steps lower its error by less than this share, or below this error.
ROUND = 5
LEAST_GAIN = 1e-3
LEAST_ERROR = 1e-12
# Bytes of normal matrices that are worked on at a time, so that they stay in the cache.
CACHE = 4 * 2**20


class Nearby(NamedTuple):
    """A batch of bases and the errors they come to.

    Attributes:
        bases: b x 3 x n x n.
        error: b, `|| bases A - T ||`.
    """

    bases: Tensor
    error: Tensor


class _State(NamedTuple):
    """Where descents stand: bases, errors and dampings."""

    bases: Tensor
    error: Tensor
    damping: Tensor


def descend(
    tables: Float[Tensor, "b n n n"],
    target: Float[Tensor, "n n n"],
    bases: Float[Tensor, "b 3 n n"],
    steps: int,
    *,
    orthogonal: bool = False,
    bounded: bool = False,
) -> Nearby:
    """Lowers `|| bases table - target ||` from each of the bases, by at most that many steps.

    Args:
        tables: What is moved, one for each of the bases.
        target: What it shall come near to.
        bases: Where to start.
        steps: Most steps of each start.
        orthogonal: Only orthogonal moves, and one for the scale.
        bounded: Refuse steps to a condition above 1000.
    """
    rows = max(1, CACHE // (8 * (3 * bases.shape[-1] ** 2) ** 2))
    parts = [
        _descended(some, target, starts, steps, orthogonal, bounded)
        for some, starts in zip(tables.split(rows), bases.split(rows), strict=True)
    ]
    return Nearby(torch.cat([part.bases for part in parts]), torch.cat([part.error for part in parts]))


def _descended(
    tables: Float[Tensor, "b n n n"],
    target: Float[Tensor, "n n n"],
    bases: Float[Tensor, "b 3 n n"],
    steps: int,
    orthogonal: bool,
    bounded: bool,
) -> _State:
    """In rounds, after each of which those that still gain go on."""
    error = (target - transformed(bases, tables)).flatten(1).norm(dim=1)
    state = _State(bases.clone(), error, torch.full_like(error, FIRST_DAMPING))
    going = torch.arange(len(bases))
    for begun in range(0, steps, ROUND):
        before = _State(*(values[going] for values in state))
        after = _stepped(tables[going], target, before, min(ROUND, steps - begun), orthogonal, bounded)
        for values, new in zip(state, after, strict=True):
            values[going] = new
        gained = after.error < (1 - LEAST_GAIN) * before.error
        refused = (after.error == before.error) & (after.damping < 1)
        going = going[(gained | refused) & (after.error > LEAST_ERROR)]
        if not len(going):
            break
    return state


def _stepped(
    tables: Float[Tensor, "b n n n"],
    target: Float[Tensor, "n n n"],
    state: _State,
    steps: int,
    orthogonal: bool,
    bounded: bool,
) -> _State:
    """That many steps of each; one that raises the error is taken back and its damping raised."""
    bases, error, damping = state
    here, eye = transformed(bases, tables), torch.eye(bases.shape[-1]).to(bases)
    move = _rigid_move if orthogonal else _move
    for _ in range(steps):
        change = move(here, target - here, damping)
        turned = (torch.linalg.matrix_exp(change) if orthogonal else change + eye) @ bases
        there = transformed(turned, tables)
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
    return _State(bases, error, damping)


class _Normal(NamedTuple):
    """`J^T J` of `(p, q, r) -> p X + q X + r X` in blocks of the sides, each n^2 square: rows (k, a), columns (l, c).

    Attributes:
        grams: b x 3 x n x n; the block of one side with itself is `[k = l] grams[a, c]`, its sides' Gram matrix.
        couplings: of p with q, p with r, q with r.
    """

    grams: Tensor
    couplings: tuple[Tensor, Tensor, Tensor]


def normal_matrix(table: Float[Tensor, "b n n n"]) -> Float[Tensor, "b unknowns unknowns"]:
    """`J^T J` of `(p, q, r) -> p X + q X + r X`, 3 n^2 square."""
    normal = _normal(table)
    return _assembled([_blocked(gram) for gram in normal.grams.unbind(1)], normal.couplings)


def _normal(table: Float[Tensor, "b n n n"]) -> _Normal:
    """From contractions of X with itself, as `<p_ka, q_ic> = sum_j X[a, i, j] X[k, c, j]`."""
    count, n = table.shape[:2]
    unfolded = torch.stack([table.movedim(side, 1).flatten(2) for side in (1, 2, 3)], dim=1)
    couplings = []
    for first, second, third in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        faces = table.permute(0, first + 1, second + 1, third + 1).reshape(count, n * n, n)
        product = (faces @ faces.mT).reshape(count, n, n, n, n)  # [a, i, k, c]
        couplings.append(product.permute(0, 3, 1, 2, 4).reshape(count, n * n, n * n))
    return _Normal(unfolded @ unfolded.mT, (couplings[0], couplings[1], couplings[2]))


def _blocked(gram: Float[Tensor, "b n n"]) -> Float[Tensor, "b nn nn"]:
    """`[k = l] gram[a, c]` in rows (k, a), columns (l, c)."""
    count, n = gram.shape[:2]
    blocks = gram.new_zeros(count, n, n, n, n)
    blocks.diagonal(dim1=1, dim2=3).copy_(gram[..., None])
    return blocks.reshape(count, n * n, n * n)


def _assembled(own: list[Tensor], couplings: tuple[Tensor, ...]) -> Float[Tensor, "b m m"]:
    """One matrix of the three sides' own blocks and of those of two."""
    (pp, qq, rr), (pq, pr, qr) = own, couplings
    rows = (pp, pq, pr), (pq.mT, qq, qr), (pr.mT, qr.mT, rr)
    return torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)


def _move(
    here: Float[Tensor, "b n n n"], residual: Float[Tensor, "b n n n"], damping: Float[Tensor, "b"]
) -> Float[Tensor, "b 3 n n"]:
    """The damped least squares move towards the residual; nothing where rounding spoils the factorization.

    Elimination by sides: r, whose own block is n copies of an n x n matrix, then p, then q.
    """
    normal, gradient = _normal(here), _gradient(here, residual)
    damped = normal.grams + _weight(here, damping)[:, None, None, None] * torch.eye(here.shape[-1]).to(here)
    pq, pr, qr = normal.couplings
    gp, gq, gr = gradient.flatten(2)[..., None].unbind(1)
    over_r = torch.linalg.inv_ex(damped[:, 2]).inverse
    zp, zq = ((block.unflatten(2, gradient.shape[2:]) @ over_r[:, None]).flatten(2) for block in (pr, qr))
    lp, failed = torch.linalg.cholesky_ex(_blocked(damped[:, 0]) - zp @ pr.mT)
    coupling = torch.linalg.solve_triangular(lp, pq - zp @ qr.mT, upper=False)
    lq, failed_too = torch.linalg.cholesky_ex(_blocked(damped[:, 1]) - zq @ qr.mT - coupling.mT @ coupling)
    half = torch.linalg.solve_triangular(lp, gp - zp @ gr, upper=False)
    q = torch.cholesky_solve(gq - zq @ gr - coupling.mT @ half, lq)
    p = torch.linalg.solve_triangular(lp.mT, half - coupling @ q, upper=True)
    r = (gr - pr.mT @ p - qr.mT @ q).reshape(gradient[:, 2].shape) @ over_r
    change = torch.stack([p.reshape(r.shape), q.reshape(r.shape), r], dim=1)
    return torch.where((failed + failed_too == 0)[:, None, None, None], change, 0.0)


def _rigid_move(
    here: Float[Tensor, "b n n n"], residual: Float[Tensor, "b n n n"], damping: Float[Tensor, "b"]
) -> Float[Tensor, "b 3 n n"]:
    """The same among skew p, q, r and one scale, which is orthogonal to those."""
    normal, gradient = _normal(here), _gradient(here, residual)
    weight, n = _weight(here, damping), here.shape[-1]
    rows, columns = torch.triu_indices(n, n, 1)
    matrix = _assembled(
        [_skew(_blocked(gram)) for gram in normal.grams.unbind(1)], tuple(_skew(c) for c in normal.couplings)
    )
    matrix.diagonal(dim1=1, dim2=2).add_(weight[:, None])
    factor, failed = torch.linalg.cholesky_ex(matrix)
    turning = (gradient - gradient.mT)[:, :, rows, columns].flatten(1) / 2**0.5
    skew = torch.cholesky_solve(turning[..., None], factor)[..., 0] / 2**0.5
    change = torch.zeros_like(gradient)
    change[:, :, rows, columns] = torch.where(failed[:, None] == 0, skew, 0.0).unflatten(1, (3, -1))
    change = change - change.mT
    scale = (residual * here).flatten(1).sum(dim=1) / (here.flatten(1).square().sum(dim=1) + n * weight)
    change[:, 0].diagonal(dim1=1, dim2=2).add_(scale[:, None])
    return change


def _skew(block: Float[Tensor, "b nn nn"]) -> Float[Tensor, "b m m"]:
    """A block of two sides in the skew directions `(E_ka - E_ak) / sqrt(2)`, k < a, of both."""
    n = math.isqrt(block.shape[-1])
    rows, columns = torch.triu_indices(n, n, 1)
    above, below = rows * n + columns, columns * n + rows
    half = block[:, above] - block[:, below]
    return (half[:, :, above] - half[:, :, below]) / 2


def _gradient(here: Float[Tensor, "b n n n"], residual: Float[Tensor, "b n n n"]) -> Float[Tensor, "b 3 n n"]:
    """`J^T` of the residual."""
    sides = [(residual.movedim(s, 1).flatten(2) @ here.movedim(s, 1).flatten(2).mT) for s in (1, 2, 3)]
    return torch.stack(sides, dim=1)


def _weight(here: Float[Tensor, "b n n n"], damping: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The damping in the units of the normal matrix."""
    return damping * here.flatten(1).square().sum(dim=1) / here.shape[-1]
