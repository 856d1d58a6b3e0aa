"""Which known algebra a rule is, up to changes of basis on its three sides."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, check_cube, check_real
from nplex.algebra.invariants import Invariants, invariants
from nplex.algebra.multilinear import Smaller, smaller
from nplex.algebra.nearest_orbit import Nearest, nearest, nearest_rigid
from nplex.algebra.orbits import LARGEST, Orbit, orbits
from nplex.algebra.plausible import NEAR, NOISE, open_, plausibilities
from nplex.algebra.table import Algebra

# Waves of starts that an algebra gets while it may still turn out to be the one.
WAVES = 5
# Two waves that end this near to each other have found the least distance.
SAME = 0.02
# Below this no name is given; between the two the verdict says "probably".
LEAST_CONFIDENCE = 0.5
SURE = 0.95
# Distances below it are rounding in float64.
EXACT = 1e-9


@dataclass(frozen=True)
class Distance:
    """How near a rule is to what one algebra becomes by changes of basis.

    Attributes:
        name: The algebra.
        aliases: Others that are the same up to changes of basis.
        distance: `|| (P, Q, R) A - T || / || T ||`, the least that was found, each condition 1000 at most.
        condition: The largest condition of P, Q, R there.
        orthogonal: The least found with orthogonal P, Q, R and a scale.
        plausibility: The share of all explanations, nothing known being one, that falls to this algebra.
    """

    name: str
    aliases: tuple[str, ...]
    distance: float
    condition: float
    orthogonal: float
    plausibility: float


@dataclass(frozen=True)
class Identification:
    """What a rule is.

    Attributes:
        n: The dimension.
        name: The algebra, or None.
        confidence: Of the verdict, from 0 to 1: its share of all explanations; 1 where everything is farther than .1,
            by the rule that nothing is named there. A score; docs/own-rule.md says how often it was right.
        verdict: A sentence for a person.
        rank: How many products the named algebra needs, where that is known; else None.
        distances: To each known algebra of this size, the nearest explanation first.
        invariants: What it is whatever its bases.
    """

    n: int
    name: str | None
    confidence: float
    verdict: str
    rank: int | None
    distances: tuple[Distance, ...]
    invariants: Invariants

    def __str__(self) -> str:
        rows = [
            (d.name, f"{d.distance:.1e}", f"{d.condition:.0f}", f"{d.orthogonal:.1e}", f"{d.plausibility:.0%}")
            for d in self.distances
        ]
        head = ("algebra", "distance", "condition", "orthogonal", "plausible")
        widths = [max(len(row[c]) for row in (head, *rows)) for c in range(len(head))]
        lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)]
        return "\n".join([self.verdict, *_facts(self.invariants), *(line.rstrip() for line in lines if rows)])


@torch.no_grad()
def identify(rule: Tensor | Algebra | BilinearAlgorithm, seed: int = 0, *, noise: float = NOISE) -> Identification:
    """The known algebra A and bases with the least `|| (P, Q, R) A - T || / || T ||`, and whether that says anything.

    Each algebra of the size is compared by descents from many starts, first all, then the ones that may still turn
    out to be it. A name is given to the algebra that explains the table best: near, and the nearer the fewer tables
    that algebra reaches; never beyond a distance of .1. A table that uses fewer dimensions than it has gets none,
    though algebras come near to it by bases of high condition. Of an algebra and its limits (dual numbers are one of
    complex numbers, at infinite condition) the limit is named if the distance cannot tell them apart. At n = 2 almost
    every table is complex or split_complex, so these names say little there, and the verdict says so.

    Args:
        rule: n x n x n, real, of any type on any device; an algebra; or factors. From n = 10 on only its invariants
            are given.
        seed: The same seed gives the same result; torch's own random state is not touched.
        noise: What share of the table's norm may be noise, from .0001 to .1. It matters at n = 2 only, where dual
            numbers are named within it; larger tables show theirs.

    Raises:
        TypeError: It is none of these.
        ValueError: It is no cube, not real, not finite, or all zeros; or noise is out of its range.

    Source: Albert, Non-associative algebras I (1942), for isotopy.

    Examples:
        >>> from nplex.algebra import split_quaternion
        >>> identify(split_quaternion).name
        'matrices(2)'
    """
    with torch.device("cpu"):
        return _identified(_checked(rule), seed, noise)


def _identified(table: Float[Tensor, "n n n"], seed: int, noise: float) -> Identification:
    """Of a checked table; the nearest of all bases is the orthogonal one where that search came nearer."""
    if not 1e-4 <= noise <= NEAR:
        raise ValueError(f"noise must be from 0.0001 to {NEAR}, a share of the table's norm, got {noise!r}")
    target = table / table.norm()
    candidates = orbits(target.shape[0])
    generator = torch.Generator("cpu").manual_seed(seed)
    found = _nearest(candidates, target, generator)
    bases = [near.bases for near in found]
    rigid = nearest_rigid(candidates, target, torch.stack(bases), generator) if found else []
    found = [min(pair, key=lambda near: near.distance) for pair in zip(found, rigid, strict=True)]
    fewer = smaller(target) if candidates else []
    shares = plausibilities(candidates, found, fewer, noise)
    rows = [
        Distance(orbit.name, orbit.aliases, near.distance, near.condition, turned.distance, share)
        for orbit, near, turned, share in zip(candidates, found, rigid, shares.orbits, strict=True)
    ]
    rows.sort(key=lambda row: (-row.plausibility, row.distance))
    if fewer and sum(shares.smaller) >= LEAST_CONFIDENCE:
        least = max(zip(shares.smaller, fewer, strict=True))[1]
        if least.distance <= NEAR:
            return _of_fewer(target, least, sum(shares.smaller), rows)
    return _identification(target, candidates, rows)


def _nearest(candidates: tuple[Orbit, ...], target: Tensor, generator: torch.Generator) -> list[Nearest]:
    """The nearest of each, in waves: after the first only for those that may still be it and have not met their
    least distance twice.
    """
    found = nearest(candidates, target, generator) if candidates else []
    done: set[int] = set()
    for wave in range(1, WAVES):
        going = [i for i in open_(candidates, found, wave) if i not in done]
        if not going:
            break
        more = nearest([candidates[i] for i in going], target, generator, wave)
        for i, again in zip(going, more, strict=True):
            done |= {i} if abs(again.distance - found[i].distance) <= SAME * found[i].distance else set()
            found[i] = min(found[i], again, key=lambda near: near.distance)
    return found


def _identification(
    target: Float[Tensor, "n n n"], candidates: tuple[Orbit, ...], rows: list[Distance]
) -> Identification:
    """The verdict in words, and what it rests on."""
    n = target.shape[0]
    best = rows[0] if rows else None
    if best is None or best.distance > NEAR or best.plausibility < LEAST_CONFIDENCE:
        share = 1.0 if best is None or best.distance > NEAR else 1.0 - best.plausibility
        return Identification(n, None, share, _nameless(n, rows), None, tuple(rows), invariants(target))
    orbit = next(orbit for orbit in candidates if orbit.name == best.name)
    facts = invariants(target, max(EXACT, 2 * best.distance))
    return Identification(n, best.name, best.plausibility, _named(best, rows, orbit), orbit.rank, tuple(rows), facts)


def _of_fewer(target: Float[Tensor, "n n n"], least: Smaller, share: float, rows: list[Distance]) -> Identification:
    """`no known algebra: it uses only 2 x 2 x 2 of its dimensions (component x result x input), ...`."""
    ranks = " x ".join(map(str, least.ranks))
    verdict = f"no known algebra: it uses only {ranks} of its dimensions (component x result x input), "
    verdict += f"relative distance {least.distance:.1g}"
    facts = invariants(target, max(EXACT, 2 * least.distance))
    return Identification(target.shape[0], None, share, verdict, None, tuple(rows), facts)


def _named(best: Distance, rows: list[Distance], orbit: Orbit) -> str:
    """`quaternion, relative distance 2e-06, condition 12 (confidence 100 %)`, and what to know beside it."""
    also = f" (= {' = '.join(best.aliases)})" if best.aliases else ""
    maybe = "" if best.plausibility >= SURE else "probably "
    sure = f"{best.plausibility:.1%}" if best.plausibility < 0.9995 else "over 99.9%"
    text = f"{maybe}{best.name}{also}, relative distance {best.distance:.1g}, confidence {sure}"
    if orbit.codimension == 0 and best.name != "real":
        text += "; almost every table of n = 2 is complex or split_complex, so this says little"
    elif best.name == "real":
        text += "; every table of n = 1 is"
    if best.plausibility < SURE and len(rows) > 1:
        text += f"; or {rows[1].name} at {rows[1].distance:.1g}"
    return text


def _nameless(n: int, rows: list[Distance]) -> str:
    """`no known algebra (nearest: dual quaternion at .41)`."""
    if not rows:
        return f"no distances: algebras are compared up to n = {LARGEST}, this has n = {n}"
    near = min(rows, key=lambda row: row.distance)
    if near.distance <= NEAR:
        return f"undecided (nearest: {near.name} at {near.distance:.2g}): the distances do not tell enough"
    return f"no known algebra (nearest: {near.name} at {near.distance:.2g})"


def _facts(facts: Invariants) -> list[str]:
    """The invariants in two or three lines."""
    ranks = " x ".join(map(str, facts.multilinear_ranks))
    lines = [f"multilinear ranks {ranks}; at least {facts.rank_at_least} products"]
    if facts.commutator is None:
        lines.append("no isotope has a unit: not both factors can be divided by")
    else:
        lines.append(
            f"its isotopes with a unit: commutator {facts.commutator:.1g}, associator {facts.associator:.1g}, "
            f"alternator {facts.alternator:.1g} (0 where the law holds in them)"
        )
    if facts.hyperdeterminant is not None and facts.signature is not None:
        plus, minus = facts.signature
        lines.append(f"hyperdeterminant {facts.hyperdeterminant:.2g}; determinant form of signature {plus}, {minus}")
    return lines


def _checked(rule: Tensor | Algebra | BilinearAlgorithm) -> Float[Tensor, "n n n"]:
    """A detached float64 table on the CPU, its largest entry from 1/2 to 2."""
    if isinstance(rule, Algebra):
        rule = rule.table
    if not isinstance(rule, Tensor | BilinearAlgorithm):
        raise TypeError(f"the rule must be a tensor, an Algebra or a BilinearAlgorithm, got {type(rule).__name__}")
    for part in (rule,) if isinstance(rule, Tensor) else rule:
        check_real("the rule", part)
        if part.is_meta:
            raise ValueError("the rule must have numbers, got a tensor on the meta device; load its weights first")
    if isinstance(rule, BilinearAlgorithm):
        shapes = [tuple(factor.shape) for factor in rule]
        if len(set(shapes)) > 1 or len(shapes[0]) != 2:
            raise ValueError(f"the rule's factors must be three n x R matrices of one shape, got {shapes}")
        rule = rule.to(torch.float64, "cpu").table()
    check_cube("the rule", rule)
    table = rule.detach().to_dense().to("cpu", torch.float64)
    if bad := int((~table.isfinite()).sum()):
        raise ValueError(f"the rule must be finite, got {bad} NaN or infinite entries")
    largest = float(table.abs().max())
    if not largest > 0:
        raise ValueError("the rule must not be all zeros: the zero product is no algebra's")
    return table / math.ldexp(1.0, math.frexp(largest)[1] - 1)
