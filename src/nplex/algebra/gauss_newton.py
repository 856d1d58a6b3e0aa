"""Damped Gauss-Newton (Levenberg-Marquardt) for a table as a sum of products, from one start.

The unknowns are the three factors, stacked 3 x n x R in the order of the table's axes: component, result, input.
All in float64 on the CPU, on tables of norm 1.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.conjugate_gradients import FACTORIZABLE, IteratedEquations
from nplex.algebra.normal_equations import FactorizedEquations, size, sum_of_products

# Up to this size of the equations one factorization is faster than conjugate gradients.
FACTORIZED = 800
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
    factorized: bool


def random_factors(n: int, rank: int, generator: torch.Generator) -> Float[Tensor, "3 n R"]:
    """Gaussian factors, scaled so that their sum of products has norm 2 (found by trial to work best)."""
    factors = torch.randn(3, n, rank, generator=generator, dtype=torch.float64, device="cpu")
    return factors * (2 / sum_of_products(factors).norm()) ** (1 / 3)


def descend(
    target: Float[Tensor, "n n n"],
    start: Float[Tensor, "3 n R"],
    steps: int,
    tolerance: float,
    penalty: float = PENALTY,
) -> Descent:
    """From `start` towards `|| target - sum of products || <= tolerance / 10`, by at most `steps` steps.

    `penalty` times the squared error is the weight of the factors' squared norm while the table is far. The damping
    begins with the squared error, so that a start which is near stays near.
    """
    residual = target - sum_of_products(start)
    error = float(residual.norm())
    damping = min(FIRST_DAMPING, max(LEAST_DAMPING, error**2))
    point = _Point(start, residual, error, damping, size(start) <= FACTORIZED)
    trail, stuck = [point], False
    while len(trail) <= steps and not stuck and not _arrived(trail, tolerance):
        following = _step(target, point, penalty)
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


def _step(target: Float[Tensor, "n n n"], point: _Point, weight: float) -> _Point | None:
    """One step that lowers `|| residual ||^2 + penalty || factors ||^2`, or None when no damping finds one."""
    penalty = weight * point.error**2 if point.error > PENALTY_ENDS else 0.0
    height = point.error**2 + penalty * float(point.factors.square().sum())
    factorized, damping = point.factorized, point.damping
    equations = (FactorizedEquations if factorized else IteratedEquations).at(point.factors)
    while damping <= MOST_DAMPING:
        move = equations.move(point.residual, damping, penalty)
        if move is None and not factorized and size(point.factors) <= FACTORIZABLE:
            # What was hard here will be harder nearer to the table.
            factorized, equations = True, FactorizedEquations.at(point.factors)
            continue
        if move is not None:
            factors = point.factors + move
            residual = target - sum_of_products(factors)
            error = float(residual.norm())
            if error**2 + penalty * float(factors.square().sum()) < height:
                # Easing right after a refusal mostly earns the next refusal, and each costs a solution.
                ease = 1 if damping > point.damping else _ease(error / point.error)
                return _Point(factors, residual, error, max(damping / ease, LEAST_DAMPING), factorized)
        damping *= 3
    return None


def _ease(left: float) -> int:
    """By how much to divide the damping after a step that left this share of the error.

    Where it leaves little, the damping is soon all that keeps the next step from leaving less.
    """
    return 100 if left < 0.1 else 5 if left < 0.7 else 2
