"""Which known algebra a table is: the one that explains it best, if it does so better than chance."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, check_real, exact_table
from nplex.algebra.classes import LARGEST, Known, classes
from nplex.algebra.identification.bases import Table, condition
from nplex.algebra.identification.fit import WAVES, Nearest, nearest
from nplex.algebra.identification.invariants import Invariants
from nplex.algebra.table import Algebra

# A table gets no name beyond NEAR; no more starts are tried where all is beyond HOPELESS; below EXACT is rounding.
NEAR, HOPELESS, EXACT = 0.1, 0.35, 1e-6
# How many times better than chance an algebra must explain a table, and how many times more a low rank must.
CHANCE, LOW_RANK = 2e4, 1e3


@dataclass(frozen=True)
class Distance:
    """`distance = || (P, Q, R) A - T || / || T ||`, the least that was found, and the largest condition there."""

    name: str
    aliases: tuple[str, ...]
    distance: float
    condition: float


@dataclass(frozen=True)
class Identification:
    """The known algebra that a table is up to changes of basis, if any, and what this rests on.

    Attributes:
        n: The dimension.
        name: The algebra, or None.
        verdict: A sentence for a person.
        rank: How many products the named algebra needs, where that is known.
        distances: To each known algebra of this size, the best explanation first.
        invariants: Measures that do not depend on the bases.
    """

    n: int
    name: str | None
    verdict: str
    rank: int | None
    distances: tuple[Distance, ...]
    invariants: Invariants

    def __str__(self) -> str:
        rows = [(row.name, f"{row.distance:.1e}", f"{row.condition:.0f}") for row in self.distances]
        rows = [("algebra", "distance", "condition"), *rows] if rows else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.verdict, str(self.invariants), *lines])


@torch.no_grad()
def identify(rule: Tensor | Algebra | BilinearAlgorithm, seed: int = 0, *, noise: float = 0.01) -> Identification:
    """The known algebra A and bases with the least `|| (P, Q, R) A - T || / || T ||`, if random tables are farther.

    The table gets the name of the algebra that explains it best: near, and the nearer the fewer tables that algebra
    reaches. It gets none beyond a distance of 0.1, where random tables come as near, or where it uses fewer
    dimensions than it has. At n = 2 almost every table is complex or split_complex, and the verdict says so.

    Args:
        rule: n x n x n, real, of any type on any device; an algebra; or factors. From n = 10 on only its invariants
            are given.
        seed: The same seed gives the same result; torch's own random state is not touched.
        noise: The share of the table's norm that may be noise, from 0.0001 to 0.1. It matters at n = 2 only: complex
            and dual numbers cannot be told apart within it, so the smaller class, dual, is named.

    Raises:
        TypeError: It is none of these.
        ValueError: It is not a cube, not real, not finite, or all zeros; or noise is out of its range.

    Source: Albert, Non-associative algebras I (1942), for isotopy.

    Examples:
        >>> from nplex.algebra import split_quaternion
        >>> identify(split_quaternion).name
        'matrices(2)'
    """
    with torch.device("cpu"):
        target = _checked(rule)
        if not 1e-4 <= noise <= NEAR:
            raise ValueError(f"noise must be from 0.0001 to {NEAR}, a share of the table's norm, got {noise!r}")
        known = classes(len(target))
        found = _nearest(known, target, torch.Generator().manual_seed(seed))
        if not known:
            verdict = f"no distances: algebras are compared up to n = {LARGEST}, this has n = {len(target)}"
            return Identification(len(target), None, verdict, None, (), Invariants.of(target))
        return _identified(target, known, found, noise)


def _nearest(known: tuple[Known, ...], target: Table, generator: torch.Generator) -> list[Nearest]:
    """The nearest of each, in waves of starts; after the first only what may be the name and was not met twice."""
    n, found = len(target), nearest([each.table for each in known], target, 0, generator) if known else []
    met: set[int] = set()
    for wave in range(1, len(WAVES) if n > 2 else 0):
        distances = [distance for distance, _ in found]
        if not found or min(distances) >= HOPELESS:
            break
        scores = [_score(each.codimension, n, distance) for each, distance in zip(known, distances, strict=True)]
        best = max(range(len(found)), key=scores.__getitem__)
        if distances[best] <= EXACT:
            break
        named = _named(known[best], n, distances[best])
        far, least = (10 * distances[best], known[best].codimension) if named else (HOPELESS, 0)
        open_ = [i for i, each in enumerate(known) if i == best or (distances[i] <= far and each.codimension > least)]
        if not (going := [i for i in open_ if i not in met]):
            break
        for i, again in zip(going, nearest([known[i].table for i in going], target, wave, generator), strict=True):
            met |= {i} if again[0] < 1.02 * distances[i] < 1.04 * again[0] else set()
            found[i] = min(found[i], again, key=lambda near: near[0])
    return found


def _identified(target: Table, known: tuple[Known, ...], found: list[Nearest], noise: float) -> Identification:
    n, distances = len(target), [distance for distance, _ in found]
    scores = [_score(each.codimension, n, distance) for each, distance in zip(known, distances, strict=True)]
    if n == 2:
        scores[2] = 1.0 if distances[2] <= _dual_limit(target, noise) else -1.0
    order = sorted(range(len(known)), key=lambda i: (-scores[i], distances[i]))
    rows = tuple(
        Distance(known[i].name, known[i].aliases, distances[i], float(condition(found[i][1]))) for i in order
    )
    best, distance, (score, lost, ranks) = known[order[0]], rows[0].distance, _low_rank(target)
    if lost <= noise / 10 if n <= 2 else lost <= NEAR and score > scores[order[0]]:
        name, distance = None, lost
        uses = " x ".join(map(str, ranks))
        verdict = f"no known algebra: it uses only {uses} of its dimensions (component x result x input)"
    elif not _named(best, n, distance):
        near = min(rows, key=lambda row: row.distance)
        verdict = f"no known algebra (nearest: {near.name} at {near.distance:.2g})"
        return Identification(n, None, verdict, None, rows, Invariants.of(target))
    else:
        name = best.name
        verdict = f"{name} (= {' = '.join(best.aliases)})" if best.aliases else name
    verdict += f", relative distance {distance:.1g}"
    if name and best.codimension == 0:
        verdict += f"; almost every table of n = {n} is {' or '.join(k.name for k in known[:2])}, so this says little"
    facts = Invariants.of(target, max(1e-9, 2 * distance))
    return Identification(n, name, verdict, best.rank if name else None, rows, facts)


def _score(codimension: int, n: int, distance: float, near: float = NEAR) -> float:
    """`log(B(c / 2, d / 2) (r / near)^-c)`: how much likelier a table is at r than by chance, for `near` = 1.

    A random table of N = n^3 numbers has a part d / N of its squared norm within a linear space of dimension d. One
    that lies there up to noise of any size (each decade as likely) is at r this many times as often, c = N - d. What
    an algebra becomes is curved, so this is a measure and not a probability. Between algebras chance
    comes as near as 0.1: so near bases of high condition bring an algebra to its limits.
    """
    c, d = codimension / 2, (n**3 - codimension) / 2
    if not c:
        return 0.0
    return math.lgamma(c) + math.lgamma(d) - math.lgamma(c + d) - codimension * math.log(max(distance, EXACT) / near)


def _named(algebra: Known, n: int, distance: float) -> bool:
    """Whether it is near, and nearer than random tables come."""
    return distance <= NEAR and (n <= 2 or _score(algebra.codimension, n, distance, 1.0) >= math.log(CHANCE))


def _dual_limit(target: Table, noise: float) -> float:
    """`1.28 noise (s_1 s_2 s_3)^0.1`, s the smallest singular values of the three flattenings.

    Within it a table of n = 2 is called dual: lower where ill-conditioned bases bring complex numbers near to dual
    ones. Both constants name the most of 90,000 hidden tables rightly (90.6 % at 1 % noise).
    """
    smallest = [torch.linalg.svdvals(target.movedim(side, 0).flatten(1))[-1] for side in range(3)]
    return 1.28 * noise * float(torch.stack(smallest).prod()) ** 0.1


def _low_rank(table: Table) -> tuple[float, float, tuple[int, ...]]:
    """The score, distance and ranks of the low multilinear ranks a, b, c that explain the table best.

    Tables of these ranks have `a b c + a (n - a) + b (n - b) + c (n - c)` free numbers.

    Source: De Lathauwer, De Moor and Vandewalle, A multilinear singular value decomposition (2000), property 10.
    """
    n = len(table)
    found: list[tuple[float, float, tuple[int, ...]]] = [(-math.inf, math.inf, ())]
    squares = [torch.linalg.svdvals(table.movedim(side, 0).flatten(1)).square() for side in range(3)]
    for ranks in itertools.product(range(1, n + 1), repeat=3):
        if max(ranks) ** 2 <= math.prod(ranks) and min(ranks) < n:
            distance = float(sum(each[rank:].sum() for each, rank in zip(squares, ranks, strict=True))) ** 0.5
            free = math.prod(ranks) + sum(rank * (n - rank) for rank in ranks)
            found.append((_score(n**3 - free, n, distance) - math.log(LOW_RANK), distance, ranks))
    return max(found) if n > 2 else min(found, key=lambda low: low[1:])


def _checked(rule: Tensor | Algebra | BilinearAlgorithm) -> Table:
    """A detached float64 table on the CPU, of norm 1."""
    rule = rule.table if isinstance(rule, Algebra) else rule
    if not isinstance(rule, Tensor | BilinearAlgorithm):
        raise TypeError(f"the rule must be a tensor, an Algebra or a BilinearAlgorithm, got {type(rule).__name__}")
    if isinstance(rule, BilinearAlgorithm):
        shapes = [tuple(factor.shape) for factor in rule]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(f"the rule's factors must be three n x R matrices of one shape, got {shapes}")
        for factor in rule:
            check_real("the rule", factor)
        rule = rule.to(torch.float64, "cpu").table()
    table = exact_table("the rule", rule)
    table = table / table.abs().max()
    return table / table.norm()
