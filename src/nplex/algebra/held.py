"""Gauss-Newton back to a table while some entries of the factors are held where they are.

Factors are stacked 3 x n x R in the order of the table's axes: component, result, input. All in float64 on the CPU.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nplex.algebra.normal_equations import factor_gram, gradient, sum_of_products

FIRST_DAMPING = 1e-3
LEAST_DAMPING = 1e-16
MOST_DAMPING = 1e4
# A solution near by is met in a few steps; where the error hardly falls after so many there is none.
PATIENCE, SLOW = 15, 0.98


def solve(
    target: Float[Tensor, "n n n"],
    factors: Float[Tensor, "3 n R"],
    free: Bool[Tensor, "3 n R"],
    steps: int = 60,
    tolerance: float = 1e-13,
) -> tuple[Float[Tensor, "3 n R"], float]:
    """Lowers `|| target - sum of products ||` by the free entries; the factors reached and their error.

    A step is `(J^T J + damping)^-1 J^T residual` in the columns of J that belong to free entries.
    """
    chosen = free.reshape(-1)
    residual = target - sum_of_products(factors)
    error, damping = float(residual.norm()), FIRST_DAMPING
    for step in range(steps if bool(free.any()) else 0):
        if error < tolerance:
            break
        gram = factor_gram(factors)[chosen][:, chosen]
        slope = gradient(residual, factors).reshape(-1)[chosen]
        before = error
        while damping < MOST_DAMPING:
            moved = _moved(gram, slope, damping, factors, chosen)
            after = target - sum_of_products(moved)
            if float(after.norm()) < error:
                factors, residual, error = moved, after, float(after.norm())
                break
            damping *= 4
        if error == before or (step > PATIENCE and error > SLOW * before):
            break
        damping = max(damping / (100 if error < 0.1 * before else 3), LEAST_DAMPING)
    return factors, error


def _moved(
    gram: Float[Tensor, "m m"],
    slope: Float[Tensor, "m"],
    damping: float,
    factors: Float[Tensor, "3 n R"],
    chosen: Bool[Tensor, "unknowns"],
) -> Float[Tensor, "3 n R"]:
    """The factors after one damped step; themselves where the equations are singular."""
    damped = gram.clone()
    damped.diagonal().add_(damping)
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        return factors
    moved = factors.clone().reshape(-1)
    moved[chosen] += torch.cholesky_solve(slope[:, None], lower)[:, 0]
    return moved.reshape(factors.shape)
