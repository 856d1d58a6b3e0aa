"""The distance of a table to all tables that an algebra becomes by changes of basis.

`min || (P, Q, R) A - T || / || T ||`, over invertible matrices of condition 1000 at most, or over orthogonal ones and
a scale. Many short descents from random starts; the better ones go on.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nplex.algebra import laws
from nplex.algebra.isotopy import bounded, condition, evened, orthogonal_bases, transformed
from nplex.algebra.orbit_descent import MOST_CONDITION, Nearby, descend
from nplex.algebra.orbits import Orbit
from nplex.algebra.stabilizer import best_conditioned
from nplex.algebra.unital import Unital, random_isomorphisms, unital_isotopes

Table = Float[Tensor, "n n n"]

# For each wave: (how many go on, steps), after the first the better ones. The last plan is for all later waves, which
# few algebras come to.
SMALL = (
    ((16, 12), (5, 20), (2, 30)),
    ((48, 12), (12, 20), (4, 30)),
    ((48, 12), (12, 20), (4, 30)),
    ((192, 12), (48, 20), (4, 30)),
)
LARGE = ((16, 12), (4, 20), (2, 30)), ((24, 12), (8, 20), (2, 30))
POLISH = 40
RIGID_SMALL = ((12, 12), (3, 30))
RIGID_LARGE = ((4, 12), (2, 30))
# How much the sides are evened before a search, by wave: algebras without nilpotents like much of it, those with,
# whose sides cannot be evened, little; small noisy tables are sometimes found only without.
EVENED_SMALL = (1, 0, 4, 0, 1)
EVENED_LARGE = (1, 2, 4, 1, 2)
FLOOR = 1e-3
# Isotopes with a unit that starts are made from.
ISOTOPES = 4


class Nearest(NamedTuple):
    """The nearest that was found.

    Attributes:
        distance: relative, `|| bases A - T || / || T ||`.
        condition: the largest one of the three matrices.
        bases: 3 x n x n.
    """

    distance: float
    condition: float
    bases: Tensor


def nearest(orbits: Sequence[Orbit], target: Table, generator: torch.Generator, wave: int = 0) -> list[Nearest]:
    """For each algebra the best of one wave of starts under all invertible matrices.

    Waves differ in how the target is prepared. Starts are made where the target's sides are even
    (nplex.algebra.isotopy.evened) and as isomorphisms of its isotopes with a unit would be, where both have one, else
    orthogonal; the last descent is towards the target as it is, so that noise counts as it came. Before and after it
    the best conditioned of equal bases are taken.
    """
    plans, rounds = (SMALL, EVENED_SMALL) if target.shape[0] <= 4 else (LARGE, EVENED_LARGE)
    stages = plans[min(wave, len(plans) - 1)]
    even, evening = evened(target, rounds[wave % len(rounds)], FLOOR)
    isotopes = unital_isotopes(even, ISOTOPES, generator)
    starts = torch.stack([_starts(orbit.algebra, isotopes, stages[0][0], generator) for orbit in orbits])
    tables = torch.stack([orbit.algebra for orbit in orbits])
    found = _staged(tables, even, _scaled(tables, even, starts), stages, orthogonal=False)
    back = bounded(_conditioned(orbits, torch.linalg.inv(evening) @ found.bases), MOST_CONDITION / 2)
    polished = _descended(tables, target, _scaled(tables, target, back), POLISH, bounded=True)
    return _best(Nearby(_conditioned(orbits, polished.bases), polished.error), target)


def nearest_rigid(
    orbits: Sequence[Orbit], target: Table, bases: Float[Tensor, "a 3 n n"], generator: torch.Generator
) -> list[Nearest]:
    """The best of several starts under orthogonal matrices and a scale; one is what is orthogonal in `bases`."""
    n, tables = target.shape[0], torch.stack([orbit.algebra for orbit in orbits])
    stages = RIGID_SMALL if n <= 4 else RIGID_LARGE
    u, _, v = torch.linalg.svd(bases)
    random = orthogonal_bases(len(orbits) * (stages[0][0] - 1), n, generator).unflatten(0, (len(orbits), -1))
    starts = torch.cat([(u @ v)[:, None], random], dim=1)
    return _best(_staged(tables, target, _scaled(tables, target, starts), stages, orthogonal=True), target)


def _starts(
    algebra: Table, isotopes: list[Unital], count: int, generator: torch.Generator
) -> Float[Tensor, "count 3 n n"]:
    """As many from each isotope with a unit, where there are such and the algebra has a unit; else orthogonal."""
    unit = laws.unit(algebra)
    if unit is None or not isotopes:
        return orthogonal_bases(count, algebra.shape[0], generator)
    each = -(-count // len(isotopes))
    return torch.cat([random_isomorphisms(isotope, algebra, unit, each, generator) for isotope in isotopes])[:count]


def _staged(
    tables: Float[Tensor, "a n n n"], target: Table, starts: Float[Tensor, "a b 3 n n"], stages: tuple, *,
    orthogonal: bool,
) -> Nearby:  # fmt: skip
    """Descents in stages, after each of which only the better ones of each algebra go on."""
    found = Nearby(starts, torch.zeros(starts.shape[:2]))
    for keep, steps in stages:
        order = found.error.argsort(dim=1)[:, :keep, None, None, None]
        found = _descended(tables, target, found.bases.take_along_dim(order, 1), steps, orthogonal=orthogonal)
    return found


def _descended(
    tables: Float[Tensor, "a n n n"], target: Table, starts: Float[Tensor, "a b 3 n n"], steps: int, **how: bool
) -> Nearby:
    """All starts of all algebras in one batch; bases a x b x 3 x n x n, errors a x b."""
    found = descend(tables.repeat_interleave(starts.shape[1], 0), target, starts.flatten(0, 1), steps, **how)
    return Nearby(*(values.unflatten(0, starts.shape[:2]) for values in found))


def _conditioned(orbits: Sequence[Orbit], bases: Float[Tensor, "a b 3 n n"]) -> Float[Tensor, "a b 3 n n"]:
    """The best conditioned bases that give the same tables; as they are where the largest condition would rise."""
    padded = pad_sequence([orbit.stabilizer for orbit in orbits], batch_first=True)
    fixing = padded.repeat_interleave(bases.shape[1], 0)
    best = best_conditioned(bases.flatten(0, 1), fixing).unflatten(0, bases.shape[:2])
    return torch.where((condition(best) < condition(bases))[..., None, None, None], best, bases)


def _scaled(
    tables: Float[Tensor, "a n n n"], target: Table, bases: Float[Tensor, "a b 3 n n"]
) -> Float[Tensor, "a b 3 n n"]:
    """The bases with the scale that is best for each; with a small one where the best is near zero."""
    made = transformed(bases, tables[:, None].expand(*bases.shape[:2], *tables.shape[1:])).flatten(2)
    size = made.square().sum(dim=2)
    scale = (made @ target.flatten()) / size
    least = 0.1 * target.norm() / size.sqrt()
    scale = torch.where(scale.abs() < least, least, scale)
    return torch.cat([bases[:, :, :1] * scale[..., None, None, None], bases[:, :, 1:]], dim=2)


def _best(found: Nearby, target: Table) -> list[Nearest]:
    """The nearest of each algebra's, the distance relative."""
    first = found.error.argmin(dim=1).tolist()
    kept = [(float(found.error[a, b] / target.norm()), found.bases[a, b]) for a, b in enumerate(first)]
    return [Nearest(distance, float(condition(bases)), bases) for distance, bases in kept]
