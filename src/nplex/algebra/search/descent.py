"""One descent from one start towards a table as a sum of products. In float64 on the CPU, on tables of norm 1."""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from nplex.algebra.levenberg_marquardt import WINDOW, Track, least_squares
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
    moves = Moves(*starts.shape[2:])

    def residual(factors: Tensor, _: Tensor) -> Tensor:
        return target - sum_of_products(factors)

    def equations(factors: Tensor, left: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        move = moves.at(factors, left, weight)
        return lambda damping: factors + move(damping)

    reached, tracks = least_squares(starts, residual, equations, steps=steps, tolerance=tolerance, penalty=penalty)
    return [_descent(*each, tolerance) for each in zip(reached, tracks, strict=True)]


def _descent(factors: Float[Tensor, "3 n R"], track: Track, tolerance: float) -> Descent:
    """Where one start ended, and the word for how."""
    (before, size_before), (error, size) = track.since(WINDOW), track.trail[-1]
    grown = growth(factors)
    ended = "stalled" if track.stuck else "moving"
    if error <= tolerance and grown <= EXPLODED:
        ended = "exact"
    elif error > 0.5 * before and grown > RESTLESS and size > GROWING * size_before:
        ended = "diverging"
    return Descent(factors, len(track.trail) - 1, error, grown, ended)
