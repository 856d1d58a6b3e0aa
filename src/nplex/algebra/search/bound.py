"""How many products a table needs at least."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Random triples of slices in each of the three directions.
TRIES = 3


class LowerBound(NamedTuple):
    """At least `rank` products are needed, because of `why`."""

    rank: int
    why: str


def lower_bound(target: Float[Tensor, "n n n"], tolerance: float) -> LowerBound:
    """The largest number of products that is proved to be needed, up to rounding.

    R products come no nearer to the table than its flattenings to rank R (Eckart and Young). A table with an
    invertible combination A of slices needs n + rank(XY - YX) / 2 products, where X and Y are A^-1 times other
    combinations; and n only if X has nothing but real eigenvalues, since n products diagonalise it.

    Source: Strassen, Rank and optimal computation of generic tensors (1983), for the commutator.
    """
    n = target.shape[0]
    flattenings = torch.stack([target.movedim(axis, 0).flatten(1) for axis in range(3)])
    tails = torch.linalg.svdvals(flattenings).square().flip(1).cumsum(1).sqrt()
    spanned = int((tails > tolerance).sum(1).max())
    bounds = [LowerBound(1, "the table is not zero")]
    bounds.append(LowerBound(spanned, f"{spanned} of its slices are linearly independent"))
    # Commutators amplify what the tolerance lets pass; beyond this they prove nothing.
    if tolerance <= 1e-9:
        generator = torch.Generator().manual_seed(0)
        mix = torch.randn(3, TRIES * 3, n, generator=generator, dtype=torch.float64, device="cpu")
        bounds += _commutator_bound((mix @ flattenings).reshape(-1, 3, n, n))
    return max(bounds, key=lambda bound: bound.rank)


def _commutator_bound(slices: Float[Tensor, "b 3 n n"]) -> list[LowerBound]:
    """The most that three slices prove; those whose first is nearly singular prove nothing."""
    n, slices = slices.shape[3], slices[torch.linalg.cond(slices[:, 0]) <= 1e3]
    if not len(slices):
        return []
    x, y = torch.linalg.solve(slices[:, :1], slices[:, 1:]).unbind(1)
    norms = torch.linalg.matrix_norm(x), torch.linalg.matrix_norm(y)
    seen = torch.linalg.svdvals(x @ y - y @ x) > 1e-6 * (norms[0] * norms[1])[:, None]
    rank = n + math.ceil(int(seen.sum(1).max()) / 2)
    turning = torch.linalg.eigvals(x).imag.abs().amax(1)
    # So far from the real axis, rounding could only put them if the products were nearly dependent (Bauer, Fike).
    if rank == n and bool((turning > 1e-2 * norms[0]).any()):
        return [LowerBound(n + 1, f"{n} products would diagonalise its slices, whose eigenvalues are not real")]
    return [LowerBound(rank, "Strassen's bound for slices that do not commute")]
