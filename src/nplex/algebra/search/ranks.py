"""Starts at one rank, and the way to the smallest rank that works."""

from typing import NamedTuple

import torch
from torch import Tensor

from nplex.algebra.bilinear import generic_rank
from nplex.algebra.search.descent import Descent, descend
from nplex.algebra.search.factors import random_factors

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
    """One start: its rank, its number there (from 0), what it took, what it reached, how it ended (see Descent)."""

    rank: int
    start: int
    steps: int
    error: float
    growth: float
    ended: str


class Task(NamedTuple):
    """What stays the same in one search; the target has norm 1."""

    target: Tensor
    generator: torch.Generator
    starts: int
    steps: int
    tolerance: float
    near: Tensor | None


class Result(NamedTuple):
    """The starts at one rank and the best of them."""

    rank: int
    best: Descent
    attempts: tuple[Attempt, ...]


def at_rank(task: Task, rank: int, starts: int, steps: int) -> Result:
    """Starts until one is exact with a good growth, those that are near first; the best of them."""
    descents, n = [], task.target.shape[0]
    if task.near is not None:
        # Without a penalty: that would move the start away from the table.
        descents = descend(task.target, task.near[None], steps, task.tolerance, penalty=0.0)
    together = max(1, int(TOGETHER / min(n**3, 3 * n * rank) ** 3))
    while len(descents) < starts and not any(map(_good, descents)):
        # The first one alone: it often does.
        count = min(together, starts - len(descents)) if descents else 1
        begun = torch.stack([random_factors(n, rank, task.generator) for _ in range(count)])
        descents += descend(task.target, begun, steps, task.tolerance)
    made = next((number for number, tried in enumerate(descents, 1) if _good(tried)), len(descents))
    attempts = tuple(
        Attempt(rank, number, tried.steps, tried.error, tried.growth, tried.ended)
        for number, tried in enumerate(descents[:made])
    )
    best = min(descents[:made], key=lambda d: (0, d.growth) if d.ended == "exact" else (1, d.error))
    return Result(rank, best, attempts)


def _good(descent: Descent) -> bool:
    """Exact, with a growth that float32 can bear."""
    return descent.ended == "exact" and descent.growth <= GOOD_GROWTH


def smallest(task: Task, least: int) -> tuple[Result, tuple[Attempt, ...]]:
    """The smallest rank that works, and all attempts on the way."""
    large = task.target.shape[0] >= LARGE
    tried = _far_below(task, least) if large else []
    if not any(_good(result.best) for result in tried):
        tried += _upwards(task, max(_first_rank(task.target.shape[0]), least))
    if not large and len(tried) == 1:
        tried += _downwards(task, tried[0].rank, least)
    working = [result for result in tried if result.best.ended == "exact"] or tried[-1:]
    best = min(working, key=lambda result: (not _good(result.best), result.rank))
    return best, tuple(attempt for result in tried for attempt in result.attempts)


def _upwards(task: Task, first: int) -> list[Result]:
    """Attempts from a rank to the first that works well, or to the second that works."""
    n = task.target.shape[0]
    starts = min(task.starts, 1 if n >= LARGE else max(FEW_STARTS, int(CHEAP / n**9)))
    tried: list[Result] = []
    # n^2 products always do (one for each pair e_k, e_j), so the way up ends.
    for rank in range(first, max(first, n * n) + 1):
        tried.append(at_rank(task, rank, starts, task.steps))
        if _good(tried[-1].best) or (len(tried) > 1 and tried[-2].best.ended == "exact"):
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
    return [tried, *_bisected(task, works - _good(tried.best), least - 1, task.starts)]


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
        works, fails = (middle, fails) if _good(tried[-1].best) else (works, middle)
    return tried
