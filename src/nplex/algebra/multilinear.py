"""The distance of a table to tables that use fewer dimensions than it has."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Smaller(NamedTuple):
    """All tables whose three flattenings have these ranks at most.

    Attributes:
        ranks: of component, result, input; one of them at least is below n.
        distance: of the table to them, relative to its norm, an upper bound within `sqrt(3)`.
        codimension: by how many equations they are cut out of all n x n x n.
    """

    ranks: tuple[int, int, int]
    distance: float
    codimension: int


def smaller(table: Float[Tensor, "n n n"]) -> list[Smaller]:
    """For each three ranks a, b, c that a table can have: what is lost when each side keeps its first directions.

    The square of the distance is at most the sum of the squares of the singular values that are left out on the three
    sides. Such tables have `a b c + a (n - a) + b (n - b) + c (n - c)` free numbers.

    Source: De Lathauwer, De Moor and Vandewalle, A multilinear singular value decomposition (2000), property 10.
    """
    n, scaled = table.shape[0], table / table.norm()
    lost = [_tails(scaled.movedim(side, 0).flatten(1)) for side in range(3)]
    found = []
    sizes = range(1, n + 1)
    for ranks in itertools.product(sizes, sizes, sizes):
        a, b, c = ranks
        if max(a / (b * c), b / (a * c), c / (a * b)) > 1 or ranks == (n, n, n):
            continue
        distance = sum(tail[rank] for tail, rank in zip(lost, ranks, strict=True)) ** 0.5
        free = a * b * c + sum(rank * (n - rank) for rank in ranks)
        found.append(Smaller(ranks, distance, n**3 - free))
    return found


def _tails(flattening: Float[Tensor, "n m"]) -> list[float]:
    """The sum of the squares of all singular values but the first r, for r from 0 to n."""
    squares = torch.linalg.svdvals(flattening).square()
    return [*squares.flip(0).cumsum(0).flip(0).tolist(), 0.0]
