"""From distances to names: how well each algebra explains a table, beside the explanation that it is none of them."""

import math
from typing import NamedTuple

from nplex.algebra.multilinear import Smaller
from nplex.algebra.nearest_orbit import Nearest
from nplex.algebra.orbits import Orbit

# Farther than this nothing is named.
NEAR = 0.1
# How many times as well as chance an algebra must explain a table before it is even with it; PLANE at n = 2, where
# almost every table has a name.
PRIOR = 2e4
PLANE = 130.0
# That a table uses fewer dimensions must explain it so many times better: usual bases bring algebras near to such by
# one small singular value, one coincidence and not as many as such a table has equations.
FEWER = 1e3
# How near bases of high condition typically bring an algebra to its limits.
LIMITS = 0.1
# Distances below it are rounding.
LEAST = 1e-6
# At n = 2, where a table's own numbers do not show its noise: dual numbers are named within .75 of it.
NOISE = 0.01
# Farther than this from everything after a first wave of starts, no more are tried.
HOPELESS = 0.35
# Explanations this many times better than chance, by bases of this condition at most, settle who it is, but for its
# limits.
SETTLED = 1.3e5
DOUBTFUL = 100.0
# Bases of a higher condition are as rare as among random matrices: the inverse of it, for each of three.
USUAL_CONDITION = 30.0


class Shares(NamedTuple):
    """How plausible each explanation of a table is; they sum to 1.

    Attributes:
        orbits: Of each algebra.
        smaller: Of each kind of table that uses fewer dimensions than it has.
        nothing: That it is nothing of this.
    """

    orbits: list[float]
    smaller: list[float]
    nothing: float


def evidence(orbit: Orbit, distance: float, condition: float = 1.0, noise: float = NOISE) -> float:
    """The logarithm of `B(c / 2, d / 2) r^-c / 20000`: how much likelier a table at r is near than by chance.

    A table of N = n^3 random numbers of one variance has a part d / N of its squared norm within a linear space of
    dimension d; one that lies there up to noise of any size (each decade as likely) is at distance r this many times
    as often, c = N - d. The orbit is curved and not linear, so this is a measure, not a probability; the 20,000 keep
    names off random tables. Bases of a condition k above 30 count `(30 / k)^3`: random matrices have them that
    seldom, and what an algebra only comes near to it reaches with such. An orbit of full dimension explains each
    table in it as well as chance does, and one at r with this noise; at n = 2 it is `1.3 / noise`, not 20,000.
    """
    if orbit.codimension == 0:
        beyond = 0.0 if distance <= LEAST else distance * math.sqrt(orbit.dimension) / noise
        return math.log(max(math.erfc(beyond / 2**0.5), 1e-300))
    rare = 3 * math.log(max(1.0, condition / USUAL_CONDITION))
    return _near(orbit.codimension, orbit.algebra.shape[0], distance, noise) - rare


def _near(codimension: int, n: int, distance: float, noise: float) -> float:
    """The same of any set of tables of this codimension, above 0."""
    c, d = codimension / 2, (n**3 - codimension) / 2
    beta = math.lgamma(c) + math.lgamma(d) - math.lgamma(c + d)
    return beta - codimension * math.log(max(distance, LEAST)) - math.log(_prior(n, noise))


def _prior(n: int, noise: float = NOISE) -> float:
    """PRIOR, or PLANE where this much noise is told."""
    return PLANE * NOISE / noise if n == 2 else PRIOR


def plausibilities(
    orbits: tuple[Orbit, ...], found: list[Nearest], fewer: list[Smaller], noise: float = NOISE
) -> Shares:
    """The share of each explanation: one of the algebras, a table of fewer dimensions, or nothing known.

    First whether it is anything known at all: the best `exp(evidence)` against 1. Then which: `exp(evidence) .1^c`, c
    the codimension, because bases of high condition bring an algebra near to its limits (smaller orbits, and all that
    uses fewer dimensions) far more often than chance would; .1 is how near they typically come. At n = 1 and 2 there
    is nothing else than these, but for a set of no volume; and tables of fewer dimensions, to which these algebras
    often come as near as the noise, count only where they are ten times nearer.
    """
    if not orbits:
        return Shares([], [0.0] * len(fewer), 1.0)
    n, filled = orbits[0].algebra.shape[0], any(orbit.codimension == 0 for orbit in orbits)
    values = [
        evidence(orbit, near.distance, near.condition, noise) for orbit, near in zip(orbits, found, strict=True)
    ]
    if filled:
        fewer = [less._replace(distance=math.inf) if less.distance > noise / 10 else less for less in fewer]
    values += [_near(less.codimension, n, less.distance, noise) - math.log(FEWER) for less in fewer]
    codimensions = [each.codimension for each in (*orbits, *fewer)]
    some = 1.0 if filled else 1.0 / (1.0 + math.exp(-min(max(values), 700.0)))
    scores = [v + (0.0 if filled else c * math.log(LIMITS)) for v, c in zip(values, codimensions, strict=True)]
    weights = [math.exp(score - max(scores)) for score in scores]
    shares = [some * weight / sum(weights) for weight in weights]
    return Shares(shares[: len(orbits)], shares[len(orbits) :], 1.0 - some)


def open_(orbits: tuple[Orbit, ...], found: list[Nearest], wave: int) -> list[int]:
    """Which may still turn out to be the name after more starts.

    None when all are far, as from random tables. Else for two waves all, then those that are near; and, once an
    algebra is settled on, those that may be limits of it or, for two waves in small sizes, are about as near. After
    two waves only those within ten times the least distance.
    """
    if not orbits:
        return []
    distances = [near.distance for near in found]
    values = [evidence(orbit, near.distance, near.condition) for orbit, near in zip(orbits, found, strict=True)]
    first = max(range(len(values)), key=values.__getitem__)
    near_enough = distances[first] <= NEAR and found[first].condition <= DOUBTFUL
    settled = values[first] > math.log(SETTLED / _prior(orbits[first].algebra.shape[0])) and near_enough
    if settled and distances[first] <= LEAST:
        return []
    if not settled and min(distances) >= HOPELESS:
        return []
    least = orbits[first].codimension if settled else 0
    far = 1.0 if not settled and wave <= 2 else HOPELESS if wave <= 2 else min(HOPELESS, 10 * min(distances))
    beside = 5 * distances[first] if wave <= 2 and orbits[first].algebra.shape[0] <= 4 else 0.0
    return [
        i for i, (orbit, distance) in enumerate(zip(orbits, distances, strict=True))
        if LEAST < distance <= far and (orbit.codimension > least or distance < beside)
    ]  # fmt: skip
