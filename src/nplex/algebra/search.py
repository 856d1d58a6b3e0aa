"""Looking for a bilinear algorithm of a table: at one rank, or at the smallest rank that works."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, generic_rank
from nplex.algebra.gauss_newton import Descent, descend, random_factors

# Above this growth another start, or one more product, is tried: float32 would lose more than a digit.
GOOD_GROWTH = 20.0
# Ranks passed on the way up, and the one look below the generic rank, get as many starts as this many operations
# a step buy, at n = 8 so few; the look has so many steps.
CHEAP, FEW_STARTS = 1e8, 3
LOOK_STEPS = 25
# A generic table stalls above 1e-3 below its rank; one that comes so near is a special one, worth a real search.
SPECIAL = 1e-5
# Two starts that end with residuals this close are said to have ended at the same one.
SAME = 1.02


class Attempt(NamedTuple):
    """One start: its rank, its number there (from 0), what it took, what it reached, how it ended (see Descent)."""

    rank: int
    start: int
    steps: int
    error: float
    growth: float
    ended: str


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


class _Bound(NamedTuple):
    """At least `rank` products are needed, because of `why`."""

    rank: int
    why: str


class _Task(NamedTuple):
    """What stays the same in one search; the target has norm 1."""

    target: Tensor
    generator: torch.Generator
    starts: int
    steps: int
    tolerance: float


class _Result(NamedTuple):
    """The starts at one rank and the best of them."""

    rank: int
    best: Descent
    attempts: tuple[Attempt, ...]

    @property
    def good(self) -> bool:
        """Exact, with a growth that float32 can bear."""
        return self.best.ended == "exact" and self.best.growth <= GOOD_GROWTH


@torch.no_grad()
def find(
    table: Tensor,
    rank: int | None = None,
    seed: int = 0,
    *,
    starts: int = 8,
    steps: int = 100,
    tolerance: float = 1e-12,
) -> Search:
    """Factors with `table[k,i,j] = sum_r encode_component[k,r] decode[i,r] encode_input[j,r]`, from random starts.

    Damped Gauss-Newton in float64; a step costs n^9 / 3 operations and 24 n^6 bytes (n = 8: 6 ms). Without a rank
    the smallest is looked for: from the generic rank upwards until one works, or downwards while they work. That
    it is the smallest is then proved only if the reason says so. Wrong arguments raise a ValueError; a search that
    fails raises nothing: the verdict and the reason say whether the rank is impossible or another seed may find it.

    Args:
        table: n x n x n, real, of any type on any device; it is worked on as a float64 copy.
        rank: The number of products; None for the smallest that is found.
        seed: The same seed gives the same result; torch's own random state is not touched.
        starts: Random starts at a rank, at most.
        steps: Steps of one start, at most.
        tolerance: The relative error that counts as exact. A table that was rounded to float32 has the rank of
            its unrounded one only up to about 1e-6.

    Source: Smirnov, The bilinear complexity and practical algorithms for matrix multiplication (2013), for least
    squares with a vanishing penalty on the factors.
    """
    exact = _checked_table(table)
    _check_numbers(rank, starts, steps, tolerance)
    task = _Task(exact / exact.norm(), torch.Generator("cpu").manual_seed(seed), starts, steps, tolerance)
    bound = _lower_bound(task.target, tolerance)
    if rank is None:
        result, attempts = _smallest(task, bound)
    else:
        result = _at_rank(task, rank, starts, steps)
        attempts = result.attempts
    algorithm = _balanced(result.best.factors, float(exact.norm()))
    verdict, reason = _verdict(result, attempts, bound)
    return Search(algorithm, result.rank, algorithm.error(exact), algorithm.growth, verdict, reason, attempts)


def _checked_table(table: Tensor) -> Float[Tensor, "n n n"]:
    """A detached float64 copy on the CPU of a table that can be searched."""
    if not isinstance(table, Tensor):
        raise TypeError(f"the table must be a tensor, got {type(table).__name__}; give algebra.table")
    if table.ndim != 3 or len(set(table.shape)) != 1 or table.shape[0] == 0:
        raise ValueError(f"the table must be a cube n x n x n, got shape {tuple(table.shape)}; pad it with zeros")
    if table.is_complex():
        raise ValueError(f"the table must be real, got {table.dtype}; write complex numbers as pairs of reals")
    exact = table.detach().to("cpu", torch.float64)
    if bad := int((~exact.isfinite()).sum()):
        raise ValueError(f"the table must be finite, got {bad} NaN or infinite entries; mend what made them")
    if not bool(exact.any()):
        raise ValueError("the table must not be all zeros, got only zeros; the zero product needs no algorithm")
    return exact


def _check_numbers(rank: int | None, starts: int, steps: int, tolerance: float) -> None:
    """Refuses what is out of its range."""
    for name, value in (("rank", 1 if rank is None else rank), ("starts", starts), ("steps", steps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if not 1e-14 <= tolerance < 1:
        raise ValueError(f"tolerance must be from 1e-14, what float64 can reach, to below 1, got {tolerance!r}")


def _at_rank(task: _Task, rank: int, starts: int, steps: int) -> _Result:
    """Starts until one is exact with a good growth; the best of them."""
    descents: list[Descent] = []
    while len(descents) < starts:
        start = random_factors(task.target.shape[0], rank, task.generator)
        descents.append(descend(task.target, start, steps, task.tolerance))
        if descents[-1].ended == "exact" and descents[-1].growth <= GOOD_GROWTH:
            break
    attempts = tuple(
        Attempt(rank, number, tried.steps, tried.error, tried.growth, tried.ended)
        for number, tried in enumerate(descents)
    )
    best = min(descents, key=lambda d: (0, d.growth) if d.ended == "exact" else (1, d.error))
    return _Result(rank, best, attempts)


def _smallest(task: _Task, bound: _Bound) -> tuple[_Result, tuple[Attempt, ...]]:
    """The smallest rank that works, and all attempts on the way."""
    n = task.target.shape[0]
    first, starts = max(generic_rank(n), bound.rank), min(task.starts, max(FEW_STARTS, int(CHEAP / n**9)))
    tried: list[_Result] = []
    # n^2 products always do (one for each pair e_k, e_j), so the way up ends.
    for rank in range(first, max(first, n * n) + 1):
        tried.append(_at_rank(task, rank, starts, task.steps))
        if tried[-1].good or (len(tried) > 1 and tried[-2].best.ended == "exact"):
            break
    if tried[-1].rank == first:
        tried += _downwards(task, first, bound.rank)
    working = [result for result in tried if result.best.ended == "exact"] or tried[-1:]
    smallest = min(working, key=lambda result: (not result.good, result.rank))
    return smallest, tuple(attempt for result in tried for attempt in result.attempts)


def _downwards(task: _Task, works: int, bound: int) -> list[_Result]:
    """Attempts below a rank that works: a look at the next one, and a bisection if the table is special."""
    if works <= bound:
        return []
    looks = min(task.starts, max(1, int(CHEAP / task.target.shape[0] ** 9)))
    tried = [_at_rank(task, works - 1, looks, LOOK_STEPS)]
    if tried[0].best.error > max(SPECIAL, task.tolerance):
        return tried
    works, fails = works - tried[0].good, bound - 1
    while works - fails > 1:
        middle = (works + fails) // 2
        tried.append(_at_rank(task, middle, task.starts, task.steps))
        works, fails = (middle, fails) if tried[-1].good else (works, middle)
    return tried


def _balanced(factors: Float[Tensor, "3 n R"], scale: float) -> BilinearAlgorithm:
    """The same products, `scale` times as large, each with its norm spread evenly over its three columns."""
    norms = factors.norm(dim=1, keepdim=True)
    even = (norms.prod(dim=0, keepdim=True) * scale) ** (1 / 3)
    u, w, v = torch.where(norms > 0, factors * even / norms, 0.0)
    return BilinearAlgorithm(encode_component=u, encode_input=v, decode=w)


def _verdict(
    result: _Result, attempts: tuple[Attempt, ...], bound: _Bound
) -> tuple[Literal["exact", "impossible", "not found"], str]:
    """The verdict and a sentence."""
    rank, best = result.rank, result.best
    n, proved = best.factors.shape[1], f"proved is that it takes at least {bound.rank}"
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


def _lower_bound(target: Float[Tensor, "n n n"], tolerance: float) -> _Bound:
    """The largest number of products that is proved to be needed, up to rounding.

    R products come no nearer to the table than its flattenings to rank R (Eckart and Young). A table with an
    invertible combination A of slices needs n + rank(XY - YX) / 2 products, where X and Y are A^-1 times other
    combinations; and n only if X has nothing but real eigenvalues, since n products diagonalise it.

    Source: Strassen, Rank and optimal computation of generic tensors (1983), for the commutator.
    """
    n = target.shape[0]
    bounds = [_Bound(1, "the table is not zero")]
    generator = torch.Generator().manual_seed(0)
    for axis in range(3):
        slices = target.movedim(axis, 0).reshape(n, n * n)
        tails = torch.linalg.svdvals(slices).square().flip(0).cumsum(0).sqrt()
        spanned = int((tails > tolerance).sum())
        bounds.append(_Bound(spanned, f"{spanned} of its slices are linearly independent"))
        # Commutators amplify what the tolerance lets pass; beyond this they prove nothing.
        if tolerance <= 1e-9:
            for _ in range(3):
                mix = torch.randn(3, n, generator=generator, dtype=torch.float64, device="cpu")
                bounds.append(_commutator_bound((mix @ slices).reshape(3, n, n)))
    return max(bounds, key=lambda bound: bound.rank)


def _commutator_bound(slices: Float[Tensor, "3 n n"]) -> _Bound:
    """What three slices prove; nothing if the first is nearly singular."""
    n = slices.shape[1]
    if float(torch.linalg.cond(slices[0])) > 1e3:
        return _Bound(0, "")
    x, y = torch.linalg.solve(slices[0], slices[1:])
    seen = torch.linalg.svdvals(x @ y - y @ x) > 1e-6 * x.norm() * y.norm()
    bound = _Bound(n + math.ceil(int(seen.sum()) / 2), "Strassen's bound for slices that do not commute")
    turning = torch.linalg.eigvals(x).imag.abs().max()
    # So far from the real axis, rounding could only put them if the products were nearly dependent (Bauer, Fike).
    if bound.rank == n and float(turning) > 1e-2 * float(x.norm()):
        return _Bound(n + 1, f"{n} products would diagonalise its slices, whose eigenvalues are not real")
    return bound
