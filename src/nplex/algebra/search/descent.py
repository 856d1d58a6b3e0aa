"""One descent from one start towards a table as a sum of products. In float64 on the CPU, on tables of norm 1."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from nplex.algebra.levenberg_marquardt import Fit, least_squares
from nplex.algebra.search.equations import Moves
from nplex.algebra.search.factors import growth, sum_of_products

# Far from the table, large factors are penalised: most starts that would run off to infinity are held by it.
PENALTY = 1e-2
# Factors of this norm compared with the table's may no longer be read as an algorithm.
EXPLODED = 1e3
# Ordinary starts end with a growth of 1 to 3; one that is above this and whose factors still grow is running off.
RESTLESS, GROWING = 4.0, 1.005


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


def descend(
    target: Float[Tensor, "n n n"],
    starts: Float[Tensor, "b 3 n R"],
    steps: int,
    tolerance: float,
    penalty: float = PENALTY,
) -> list[Descent]:
    """From each start towards `|| target - sum of products || <= tolerance / 10`, by at most `steps` steps."""
    moves = Moves(starts[0].numel())

    def residual(factors: Tensor, _: Tensor) -> Tensor:
        return target - sum_of_products(factors)

    def equations(fit: Fit, weight: Tensor) -> Callable[[Tensor], Tensor]:
        move = moves.at(fit.unknowns, fit.residual, weight)
        return lambda damping: fit.unknowns + move(damping)

    fit = least_squares(starts, residual, equations, steps=steps, tolerance=tolerance, penalty=penalty)
    return [_descent(Fit(*values), tolerance) for values in zip(*fit, strict=True)]


def _descent(fit: Fit, tolerance: float) -> Descent:
    """Where one start ended, and the word for how."""
    (before, size_before), (error, size) = fit.trail[0].tolist(), fit.trail[-1].tolist()
    grown = growth(fit.unknowns)
    ended = "stalled" if bool(fit.stuck) else "moving"
    if error <= tolerance and grown <= EXPLODED:
        ended = "exact"
    elif error > 0.5 * before and grown > RESTLESS and size > GROWING * size_before:
        ended = "diverging"
    return Descent(fit.unknowns, int(fit.steps), error, grown, ended)
