"""The distance of a table to all tables that an algebra becomes by changes of basis.

`min || (P, Q, R) A - T || / || T ||`, over invertible matrices of condition 1000 at most, or over orthogonal ones and
a scale. Many short descents from random starts; the better ones go on.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import laws
from nplex.algebra.isotopy import bounded, condition, evened, orthogonal_bases, transformed
from nplex.algebra.orbit_descent import MOST_CONDITION, Nearby, descend
from nplex.algebra.unital import random_isomorphisms, unital_isotopes

Table = Float[Tensor, "n n n"]

# (how many go on, steps): after the first, the better ones.
SMALL = ((32, 12), (12, 20), (4, 30))
LARGE = ((24, 12), (8, 20), (2, 30))
POLISH = 40
RIGID = ((16, 12), (3, 30))
# How much the sides are evened before a search, by wave: algebras without nilpotents like much of it, those with,
# whose sides cannot be evened, little; small noisy tables are sometimes found only without.
EVENED_SMALL = (1, 0, 4)
EVENED_LARGE = (1, 4, 2)
FLOOR = 1e-3
# Isotopes with a unit that starts are made from, and the share of starts that are not.
ISOTOPES = 4
FREE = 4


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


def nearest(algebra: Table, target: Table, generator: torch.Generator, wave: int = 0) -> Nearest:
    """The best of one wave of starts under all invertible matrices; waves differ in how the target is prepared.

    Starts are made where the target's sides are even (nplex.algebra.isotopy.evened) and mostly as isomorphisms of
    its isotopes with a unit would be; the last descent is towards the target as it is, so that noise counts as it
    came.
    """
    stages, rounds = (SMALL, EVENED_SMALL) if target.shape[0] <= 4 else (LARGE, EVENED_LARGE)
    even, evening = evened(target, rounds[wave % len(rounds)], FLOOR)
    found = _staged(algebra, even, _starts(algebra, even, stages[0][0], generator), stages, orthogonal=False)
    back = _scaled(algebra, target, bounded(torch.linalg.inv(evening) @ found.bases, MOST_CONDITION / 2))
    return _best(descend(algebra, target, back, POLISH, bounded=True), target)


def nearest_rigid(
    algebra: Table, target: Table, bases: Float[Tensor, "3 n n"], generator: torch.Generator
) -> Nearest:
    """The best of several starts under orthogonal matrices and a scale; one is what is orthogonal in `bases`."""
    count, n = RIGID[0][0], target.shape[0]
    u, _, v = torch.linalg.svd(bases)
    starts = torch.cat([(u @ v)[None], orthogonal_bases(count - 1, n, generator)])
    return _best(_staged(algebra, target, _scaled(algebra, target, starts), RIGID, orthogonal=True), target)


def _starts(algebra: Table, even: Table, count: int, generator: torch.Generator) -> Float[Tensor, "count 3 n n"]:
    """Three quarters by way of isotopes with a unit, where both have one; the others orthogonal."""
    unit = laws.unit(algebra)
    isotopes = [] if unit is None else unital_isotopes(even, ISOTOPES, generator)
    each = 0 if not isotopes else (count - count // FREE) // len(isotopes)
    made = [random_isomorphisms(isotope, unit, each, generator) for isotope in isotopes if unit is not None]
    free = orthogonal_bases(count - each * len(isotopes), even.shape[0], generator)
    return _scaled(algebra, even, torch.cat([*made, free]))


def _staged(
    algebra: Table, target: Table, starts: Float[Tensor, "b 3 n n"], stages: tuple, *, orthogonal: bool
) -> Nearby:
    """Descents in stages, after each of which only the better ones go on."""
    found = Nearby(starts, torch.zeros(len(starts)))
    for keep, steps in stages:
        kept = found.bases[found.error.argsort()[:keep]]
        found = descend(algebra, target, kept, steps, orthogonal=orthogonal)
    return found


def _scaled(algebra: Table, target: Table, bases: Float[Tensor, "b 3 n n"]) -> Float[Tensor, "b 3 n n"]:
    """The bases with the scale that is best for each; with a small one where the best is near zero."""
    made = transformed(bases, algebra.expand(len(bases), *algebra.shape))
    size = made.flatten(1).square().sum(dim=1)
    scale = (made * target).flatten(1).sum(dim=1) / size
    least = 0.1 * target.norm() / size.sqrt()
    scale = torch.where(scale.abs() < least, least, scale)
    return torch.cat([bases[:, :1] * scale[:, None, None, None], bases[:, 1:]], dim=1)


def _best(found: Nearby, target: Table) -> Nearest:
    """The nearest of a batch, the distance relative."""
    first = int(found.error.argmin())
    bases = found.bases[first]
    return Nearest(float(found.error[first] / target.norm()), float(condition(bases)), bases)
