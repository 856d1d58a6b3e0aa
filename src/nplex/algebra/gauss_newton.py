"""Damped Gauss-Newton (Levenberg-Marquardt) for a table as a sum of products, from one start.

The unknowns are the three factors, stacked 3 x n x R in the order of the table's axes: component, result, input.
All in float64 on the CPU, on tables of norm 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# A descent ends when the error fell by less than a twentieth within this many steps.
WINDOW = 15
SLOW = 0.95
# Far from the table, large factors are penalised: most starts that would run off to infinity are held by it.
PENALTY = 1e-2
PENALTY_ENDS = 1e-2
FIRST_DAMPING = 0.1
LEAST_DAMPING = 1e-17
MOST_DAMPING = 1e6
# Factors of this norm compared with the table's may no longer be read as an algorithm.
EXPLODED = 1e3
# Ordinary starts end with a growth of 1 to 3; one that is above this and still rises is running off.
RESTLESS = 4.0


class Descent(NamedTuple):
    """Where one start ended.

    Attributes:
        factors: 3 x n x R.
        steps: Steps taken.
        error: The residual's norm; the table has norm 1.
        growth: The norm of the terms' norms.
        ended: "exact"; "stalled" when the error stands still; "diverging" when it only creeps down while the
            factors grow; "moving" when the steps ran out first.
    """

    factors: Tensor
    steps: int
    error: float
    growth: float
    ended: str


class _Point(NamedTuple):
    factors: Tensor
    residual: Tensor
    error: float
    damping: float


def random_factors(n: int, rank: int, generator: torch.Generator) -> Float[Tensor, "3 n R"]:
    """Gaussian factors, scaled so that their sum of products has norm 2 (found by trial to work best)."""
    factors = torch.randn(3, n, rank, generator=generator, dtype=torch.float64, device="cpu")
    return factors * (2 / sum_of_products(factors).norm()) ** (1 / 3)


def sum_of_products(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "n n n"]:
    """`[k, i, j] = sum_r factors[0, k, r] factors[1, i, r] factors[2, j, r]`."""
    u, w, v = factors
    n, rank = u.shape
    return (u @ (w[:, None] * v).reshape(n * n, rank).mT).reshape(n, n, n)


def descend(target: Float[Tensor, "n n n"], start: Float[Tensor, "3 n R"], steps: int, tolerance: float) -> Descent:
    """From `start` towards `|| target - sum of products || <= tolerance / 10`, by at most `steps` steps."""
    residual = target - sum_of_products(start)
    point = _Point(start, residual, float(residual.norm()), FIRST_DAMPING)
    trail, stuck = [point], False
    while len(trail) <= steps and not stuck and not _arrived(trail, tolerance):
        following = _step(target, point)
        stuck = following is None or (len(trail) >= WINDOW and following.error > SLOW * trail[-WINDOW].error)
        if following is not None:
            point = following
            trail.append(point)
    growth = _growth(point.factors)
    ended = _ended(trail, growth, stuck, tolerance)
    return Descent(point.factors, len(trail) - 1, point.error, growth, ended)


def _arrived(trail: list[_Point], tolerance: float) -> bool:
    """Ten times better than asked for, or good enough and no longer gaining."""
    error = trail[-1].error
    gaining = len(trail) < 2 or error < 0.5 * trail[-2].error
    return error <= tolerance / 10 or (error <= tolerance and not gaining)


def _ended(trail: list[_Point], growth: float, stuck: bool, tolerance: float) -> str:
    """The word for how a descent ended."""
    if trail[-1].error <= tolerance and growth <= EXPLODED:
        return "exact"
    before = trail[max(0, len(trail) - 1 - WINDOW)]
    creeping = trail[-1].error > 0.5 * before.error
    if creeping and growth > max(RESTLESS, 1.02 * _growth(before.factors)):
        return "diverging"
    return "stalled" if stuck else "moving"


def _growth(factors: Float[Tensor, "3 n R"]) -> float:
    """`|| (|u_r| |w_r| |v_r|)_r ||`."""
    return float(factors.norm(dim=1).prod(dim=0).norm())


def _step(target: Float[Tensor, "n n n"], point: _Point) -> _Point | None:
    """One step that lowers `|| residual ||^2 + penalty || factors ||^2`, or None when no damping finds one."""
    penalty = PENALTY * point.error**2 if point.error > PENALTY_ENDS else 0.0
    height = point.error**2 + penalty * float(point.factors.square().sum())
    system = _result_gram(point.factors) if _underdetermined(point.factors) else _factor_gram(point.factors)
    damping = point.damping
    while damping <= MOST_DAMPING:
        move = _move(target, point, system, damping, penalty)
        if move is not None:
            factors = point.factors + move
            residual = target - sum_of_products(factors)
            error = float(residual.norm())
            if error**2 + penalty * float(factors.square().sum()) < height:
                # Easing right after a refusal mostly earns the next refusal, and each costs a factorization.
                refused = damping > point.damping
                ease = 1 if refused else 5 if error < 0.7 * point.error else 2
                return _Point(factors, residual, error, max(damping / ease, LEAST_DAMPING))
        damping *= 3
    return None


def _move(
    target: Float[Tensor, "n n n"], point: _Point, system: Tensor, damping: float, penalty: float
) -> Float[Tensor, "3 n R"] | None:
    """`(J^T J + (damping + penalty) I)^-1 (J^T residual - penalty factors)`, or None if that is singular.

    When there are more unknowns than equations, as at the generic rank, the same move is found from J J^T:
    with s = penalty / (damping + penalty) it is `J^T (J J^T + (damping + penalty) I)^-1 (residual + s J factors)
    - s factors`, and J factors = 3 times the sum of products, because that is homogeneous of degree 3.
    """
    shift = damping + penalty
    damped = system.clone()
    damped.diagonal().add_(shift)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return None
    if not _underdetermined(point.factors):
        wish = _gradient(point.residual, point.factors) - penalty * point.factors
        return torch.cholesky_solve(wish.reshape(-1, 1), lower).reshape(wish.shape)
    share = penalty / shift
    wish = point.residual + 3 * share * (target - point.residual)
    solved = torch.cholesky_solve(wish.reshape(-1, 1), lower).reshape(wish.shape)
    return _gradient(solved, point.factors) - share * point.factors


def _underdetermined(factors: Float[Tensor, "3 n R"]) -> bool:
    """Whether J J^T, n^3 x n^3, is no larger than J^T J, 3nR x 3nR."""
    n, rank = factors.shape[1:]
    return n * n <= 3 * rank


def _gradient(y: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3 n R"]:
    """`J^T y`: for the first factor `[k, r] = sum_ij y[k, i, j] w[i, r] v[j, r]`, and so on."""
    u, w, v = factors
    n, rank = u.shape
    with_v = y @ v  # k, i, r
    with_u = (y.reshape(n, n * n).mT @ u).reshape(n, n, rank)  # i, j, r
    return torch.stack([(with_v * w).sum(1), (with_v * u[:, None]).sum(0), (with_u * w[:, None]).sum(0)])


def _result_gram(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "n**3 n**3"]:
    """`J J^T`, the sum over the three axes of (Gram of the other two factors' products) (x) identity."""
    n, rank = factors.shape[1:]
    gram = factors.new_zeros(n, n, n, n, n, n)
    for axis in range(3):
        first, second = (factors[other] for other in range(3) if other != axis)
        pairs = (first[:, None] * second).reshape(n * n, rank)
        gram.diagonal(dim1=axis, dim2=axis + 3).add_((pairs @ pairs.mT).reshape(n, n, n, n, 1))
    return gram.reshape(n**3, n**3)


def _factor_gram(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3*n*R 3*n*R"]:
    """`J^T J`: diagonal blocks I (x) (product of the other two Gram matrices), and the mixed ones.

    The mixed block of axes a and b, c being the third, is
    `[k, r, i, s] = factors[a, k, s] factors[b, i, r] (factors[c]^T factors[c])[r, s]`.
    """
    n, rank = factors.shape[1:]
    grams = factors.mT @ factors
    system = factors.new_zeros(3, n, rank, 3, n, rank)
    for a in range(3):
        b, c = (a + 1) % 3, (a + 2) % 3
        system[a, :, :, a].diagonal(dim1=0, dim2=2).copy_((grams[b] * grams[c])[..., None].expand(-1, -1, n))
        mixed = factors[a][:, None, None, :] * factors[b].mT[None, :, :, None] * grams[c][None, :, None, :]
        system[a, :, :, b] = mixed
        system[b, :, :, a] = mixed.permute(2, 3, 0, 1)
    return system.reshape(3 * n * rank, 3 * n * rank)
