"""Descents from starts at one rank, and the way to the smallest rank that works.

In float64 on the CPU, on tables of norm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import generic_rank
from nplex.algebra.levenberg_marquardt import WINDOW, Track, least_squares
from nplex.algebra.search.equations import Moves
from nplex.algebra.search.factors import growth, random_factors, sum_of_products

# Far from the table, large factors are penalised: most starts that would run off to infinity are held by it.
PENALTY = 1e-2
# Factors of this norm compared with the table's may no longer be read as an algorithm.
EXPLODED = 1e3
# Ordinary starts end with a growth of 1 to 3; one that is above this and whose factors still grow is running off.
RESTLESS, GROWING = 4.0, 1.005

# Above this growth another start, or one more product, is tried: float32 would lose more than a digit.
GOOD_GROWTH = 20.0
# Ranks passed on the way up, and the one look below the generic rank, get as many starts as this many operations
# a step buy, at n = 8 so few; the look has so many steps.
CHEAP, FEW_STARTS = 1e8, 3
LOOK_STEPS = 25
# Starts descend together while a step costs this many operations: its overhead is then paid once.
TOGETHER = 1e7
# From this n on one product more costs 3 % or less, and a second start as much time as the first: each rank gets one.
LARGE = 10
# The generic rank is then passed over if this share of the unknowns is not to spare: the equations are so nearly
# singular at every solution that one descent takes five to ten times as long.
SPARE = 0.0075
# And special tables are looked for first, at this share of the generic rank; others stall there above a hundredth.
FAR_BELOW, SPECIAL_FAR_BELOW = 0.75, 1e-3
# A generic table stalls above 1e-3 below its rank; one that comes so near is a special one, worth a real search.
SPECIAL = 1e-5


class Attempt(NamedTuple):
    """Where one start ended.

    Attributes:
        rank: The number of products.
        start: Its number at this rank, from 0.
        steps: Steps taken.
        error: The residual's norm; the table has norm 1.
        growth: The norm of the terms' norms.
        ended: "exact"; "stalled" when the error stands still; "diverging" when it only creeps down while the
            factors grow; "moving" when the steps ran out first.
    """

    rank: int
    start: int
    steps: int
    error: float
    growth: float
    ended: str

    @property
    def good(self) -> bool:
        """Exact, with a growth that float32 can bear."""
        return self.ended == "exact" and self.growth <= GOOD_GROWTH


class Task(NamedTuple):
    """What stays the same in one search; the target has norm 1."""

    target: Tensor
    generator: torch.Generator
    starts: int
    steps: int
    tolerance: float
    near: Tensor | None


class Result(NamedTuple):
    """The starts at one rank, the best of them, and its factors."""

    attempts: tuple[Attempt, ...]
    best: Attempt
    factors: Tensor


def at_rank(task: Task, rank: int, starts: int, steps: int) -> Result:
    """Starts until one is exact with a good growth, those that are near first; the best of them."""
    n, factors = task.target.shape[0], []
    attempts: list[Attempt] = []

    def descend(begun: Float[Tensor, "b 3 n R"], penalty: float) -> None:
        reached, tracks = _descended(task, begun, steps, penalty)
        for each, track in zip(reached, tracks, strict=True):
            if not any(attempt.good for attempt in attempts):
                factors.append(each)
                attempts.append(_attempt(rank, len(attempts), each, track, task.tolerance))

    if task.near is not None:
        descend(task.near[None], 0.0)  # a penalty would move the start away from the table
    together = max(1, int(TOGETHER / min(n**3, 3 * n * rank) ** 3))
    while len(attempts) < starts and not any(attempt.good for attempt in attempts):
        # The first one alone: it often does.
        count = min(together, starts - len(attempts)) if attempts else 1
        descend(torch.stack([random_factors(n, rank, task.generator) for _ in range(count)]), PENALTY)
    best = min(attempts, key=lambda each: (0, each.growth) if each.ended == "exact" else (1, each.error))
    return Result(tuple(attempts), best, factors[best.start])


def _descended(
    task: Task, starts: Float[Tensor, "b 3 n R"], steps: int, penalty: float
) -> tuple[Float[Tensor, "b 3 n R"], list[Track]]:
    """From each start towards `|| target - sum of products || <= tolerance / 10`, by at most `steps` steps."""
    moves = Moves(*starts.shape[2:])

    def residual(factors: Tensor, _: Tensor) -> Tensor:
        return task.target - sum_of_products(factors)

    def equations(factors: Tensor, left: Tensor, weight: Tensor) -> Callable[[Tensor], Tensor]:
        move = moves.at(factors, left, weight)
        return lambda damping: factors + move(damping)

    return least_squares(starts, residual, equations, steps=steps, tolerance=task.tolerance, penalty=penalty)


def _attempt(rank: int, start: int, factors: Float[Tensor, "3 n R"], track: Track, tolerance: float) -> Attempt:
    """Where one start ended, and the word for how."""
    (before, size_before), (error, size) = track.since(WINDOW), track.trail[-1]
    grown = growth(factors)
    ended = "stalled" if track.stuck else "moving"
    if error <= tolerance and grown <= EXPLODED:
        ended = "exact"
    elif error > 0.5 * before and grown > RESTLESS and size > GROWING * size_before:
        ended = "diverging"
    return Attempt(rank, start, len(track.trail) - 1, error, grown, ended)


def smallest(task: Task, least: int) -> tuple[Result, tuple[Attempt, ...]]:
    """The smallest rank that works, and all attempts on the way."""
    large = task.target.shape[0] >= LARGE
    tried = _far_below(task, least) if large else []
    if not any(result.best.good for result in tried):
        tried += _upwards(task, max(_first_rank(task.target.shape[0]), least))
    if not large and len(tried) == 1:
        tried += _downwards(task, tried[0].best.rank, least)
    working = [result for result in tried if result.best.ended == "exact"] or tried[-1:]
    best = min(working, key=lambda result: (not result.best.good, result.best.rank))
    return best, tuple(attempt for result in tried for attempt in result.attempts)


def _upwards(task: Task, first: int) -> list[Result]:
    """Attempts from a rank to the first that works well, or to the second that works."""
    n = task.target.shape[0]
    starts = min(task.starts, 1 if n >= LARGE else max(FEW_STARTS, int(CHEAP / n**9)))
    tried: list[Result] = []
    # n^2 products always do (one for each pair e_k, e_j), so the way up ends.
    for rank in range(first, max(first, n * n) + 1):
        tried.append(at_rank(task, rank, starts, task.steps))
        if tried[-1].best.good or (len(tried) > 1 and tried[-2].best.ended == "exact"):
            break
    return tried


def _first_rank(n: int) -> int:
    """The generic rank, or the next where that has (3n - 2) R unknowns, up to scale, for hardly fewer equations."""
    rank = generic_rank(n)
    return rank + (n >= LARGE and (3 * n - 2) * rank < (1 + SPARE) * n**3)


def _downwards(task: Task, works: int, least: int) -> list[Result]:
    """Attempts below a rank that works: a look at the next one, and a bisection if the table is special."""
    if works <= least:
        return []
    looks = min(task.starts, max(1, int(CHEAP / task.target.shape[0] ** 9)))
    tried = at_rank(task, works - 1, looks, LOOK_STEPS)
    if tried.best.error > max(SPECIAL, task.tolerance):
        return [tried]
    return [tried, *_bisected(task, works - tried.best.good, least - 1, task.starts)]


def _far_below(task: Task, least: int) -> list[Result]:
    """Attempts far below the generic rank: a look, and if the table is special a bisection from there."""
    rank = max(least, int(FAR_BELOW * generic_rank(task.target.shape[0])))
    look = at_rank(task, rank, 1, LOOK_STEPS)
    if look.best.error > max(SPECIAL_FAR_BELOW, task.tolerance):
        return [look]
    # To have come near is enough: between its own rank and the generic one a special table has singular solutions.
    return [look, *_bisected(task, rank, least - 1, min(task.starts, FEW_STARTS))]


def _bisected(task: Task, works: int, fails: int, starts: int) -> list[Result]:
    """Attempts between a rank that works and one that fails."""
    tried: list[Result] = []
    while works - fails > 1:
        middle = (works + fails) // 2
        tried.append(at_rank(task, middle, starts, task.steps))
        works, fails = (middle, fails) if tried[-1].best.good else (works, middle)
    return tried
