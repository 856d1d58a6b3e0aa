"""Looking for a bilinear algorithm of a table: at one rank, or at the smallest rank that works."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, exact_table, generic_rank
from nplex.algebra.search.bound import LowerBound, lower_bound
from nplex.algebra.search.factors import as_algorithm, balanced, check_factors, stacked
from nplex.algebra.search.ranks import Attempt, Result, Task, at_rank, smallest

# Two starts that end with residuals this close are said to have ended at the same one.
SAME = 1.02


@dataclass(frozen=True, eq=False)
class Search:
    """What was looked for and what was found.

    Attributes:
        algorithm: The best one, in float64 on the CPU; the three columns of a term have equal norms.
        rank: Its number of products.
        error: `|| its table - table || / || table ||`, in float64.
        growth: How far it amplifies rounding errors; 1 is best.
        verdict: "exact", "impossible" (proved, or by numerical evidence: the reason says which) or "not found".
        reason: A sentence for a person.
        attempts: Every start, in order.
    """

    algorithm: BilinearAlgorithm
    rank: int
    error: float
    growth: float
    verdict: Literal["exact", "impossible", "not found"]
    reason: str
    attempts: tuple[Attempt, ...]

    def __str__(self) -> str:
        ranks = list(dict.fromkeys(attempt.rank for attempt in self.attempts))
        steps = sum(attempt.steps for attempt in self.attempts)
        n = self.algorithm.n
        return "\n".join([
            f"looked for: {', '.join(map(str, ranks))} products, n = {n}; {len(self.attempts)} starts, {steps} steps",
            f"best: {self.rank} products, relative error {self.error:.1e}, growth {self.growth:.1f}",
            f"{self.verdict}: {self.reason}",
        ])


@torch.no_grad()
def find(
    table: Tensor,
    rank: int | None = None,
    seed: int = 0,
    *,
    starts: int = 8,
    steps: int = 100,
    tolerance: float = 1e-12,
    start: BilinearAlgorithm | None = None,
) -> Search:
    """Factors with `table[k,i,j] = sum_r encode_component[k,r] decode[i,r] encode_input[j,r]`, from random starts.

    Damped Gauss-Newton in float64. Up to n = 9, and for low ranks, a step is a factorization of n^9 / 3 operations
    and 16 n^6 bytes (n = 8: 6 ms). Beyond it is 5 to 2000 conjugate gradients of 24 n R^2 operations (n = 20: 350 a
    step, 0.25 s), in 200 R^2 bytes. Without a rank the smallest is looked for: up to n = 9 from the generic rank
    upwards until one works, or downwards while they work; from n = 10 at three quarters of the generic rank, from
    there downwards if that nearly works, else upwards from the generic rank, or from the next where that has less
    than .75 % of its unknowns to spare. That it is the smallest is then proved only if the reason says so. Wrong
    arguments raise a ValueError or a TypeError; a search that fails raises nothing: the verdict and the reason say
    whether the rank is impossible or another seed may find it.

    Args:
        table: n x n x n, real, of any type on any device; it is worked on as a float64 copy.
        rank: The number of products; None for the smallest that is found.
        seed: The same seed gives the same result; torch's own random state is not touched.
        starts: Random starts at a rank, at most.
        steps: Steps of one start, at most.
        tolerance: The relative error that counts as exact. A table that was rounded to float32 has the rank of
            its unrounded one only up to about 1e-6.
        start: Factors that are near, as of the same rule before some more training: the first start, in place of a
            random one. Its rank is the rank.

    Source: Smirnov, The bilinear complexity and practical algorithms for matrix multiplication (2013), for least
    squares with a vanishing penalty on the factors.
    """
    if not isinstance(table, Tensor):
        raise TypeError(f"the table must be a tensor, got {type(table).__name__}; give algebra.table")
    exact = exact_table("the table", table)
    _check_numbers(rank, starts, steps, tolerance)
    scale, near = float(exact.norm()), None
    if start is not None:
        check_factors(start, exact.shape[0], rank)
        rank, near = start.rank, balanced(stacked(start) / scale ** (1 / 3))
    task = Task(exact / scale, torch.Generator("cpu").manual_seed(seed), starts, steps, tolerance, near)
    bound = lower_bound(task.target, tolerance)
    if rank is None:
        result, attempts = smallest(task, bound.rank)
    else:
        result = at_rank(task, rank, starts, steps)
        attempts = result.attempts
    algorithm = as_algorithm(balanced(result.factors * scale ** (1 / 3)))
    verdict, reason = _verdict(result, attempts, bound)
    return Search(algorithm, algorithm.rank, algorithm.error(exact), algorithm.growth, verdict, reason, attempts)


def _check_numbers(rank: int | None, starts: int, steps: int, tolerance: float) -> None:
    for name, value in (("rank", 1 if rank is None else rank), ("starts", starts), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 1e-14 <= tolerance < 1:
        raise ValueError(f"tolerance must be from 1e-14, what float64 can reach, to below 1, got {tolerance!r}")


def _verdict(
    result: Result, attempts: tuple[Attempt, ...], bound: LowerBound
) -> tuple[Literal["exact", "impossible", "not found"], str]:
    best, n = result.best, result.factors.shape[1]
    rank, proved = best.rank, f"proved is that it takes at least {bound.rank}"
    if best.ended == "exact":
        if rank == bound.rank:
            return "exact", f"{rank} products do, and fewer cannot: {bound.why}."
        below = [attempt.rank for attempt in attempts if attempt.rank < rank]
        if below:
            return "exact", f"{rank} products do; {max(below)} were tried and not found, {proved}."
        return "exact", f"{rank} products do; {proved}."
    if rank < bound.rank:
        return "impossible", f"proved: {rank} products are too few, at least {bound.rank} are needed: {bound.why}."
    pattern = _evidence(result.attempts)
    if pattern:
        return "impossible", f"numerical evidence, no proof: {pattern} at {rank} products; {proved}. Try {rank + 1}."
    hint = f", and almost no table of n = {n} has fewer than {generic_rank(n)}" if rank < generic_rank(n) else ""
    return "not found", (
        f"{len(result.attempts)} starts at {rank} products came to relative error {best.error:.1e} without a common "
        f"end: another seed, more starts or more steps may find it, or one product more; {proved}{hint}."
    )


def _evidence(attempts: tuple[Attempt, ...]) -> str:
    """What speaks for impossibility: three starts or more, all ended, all diverging or the best one met twice."""
    if len(attempts) < 3 or any(attempt.ended == "moving" for attempt in attempts):
        return ""
    if all(attempt.ended == "diverging" for attempt in attempts):
        return f"in all {len(attempts)} starts the error creeps down only as the factors grow and grow"
    least = min(attempts, key=lambda attempt: attempt.error)
    same = sum(attempt.error <= SAME * least.error for attempt in attempts)
    if least.ended != "stalled" or same < 2:
        return ""
    return f"all {len(attempts)} starts stall, {same} of them at the same least relative error {least.error:.3f}"
