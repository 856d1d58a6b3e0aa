"""How many products a table needs at least."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
    bounds = [LowerBound(1, "the table is not zero")]
    generator = torch.Generator().manual_seed(0)
    for axis in range(3):
        slices = target.movedim(axis, 0).reshape(n, n * n)
        tails = torch.linalg.svdvals(slices).square().flip(0).cumsum(0).sqrt()
        spanned = int((tails > tolerance).sum())
        bounds.append(LowerBound(spanned, f"{spanned} of its slices are linearly independent"))
        # Commutators amplify what the tolerance lets pass; beyond this they prove nothing.
        if tolerance <= 1e-9:
            for _ in range(3):
                mix = torch.randn(3, n, generator=generator, dtype=torch.float64, device="cpu")
                bounds.append(_commutator_bound((mix @ slices).reshape(3, n, n)))
    return max(bounds, key=lambda bound: bound.rank)


def _commutator_bound(slices: Float[Tensor, "3 n n"]) -> LowerBound:
    """What three slices prove; nothing if the first is nearly singular."""
    n = slices.shape[1]
    if float(torch.linalg.cond(slices[0])) > 1e3:
        return LowerBound(0, "")
    x, y = torch.linalg.solve(slices[0], slices[1:])
    seen = torch.linalg.svdvals(x @ y - y @ x) > 1e-6 * x.norm() * y.norm()
    bound = LowerBound(n + math.ceil(int(seen.sum()) / 2), "Strassen's bound for slices that do not commute")
    turning = torch.linalg.eigvals(x).imag.abs().max()
    # So far from the real axis, rounding could only put them if the products were nearly dependent (Bauer, Fike).
    if bound.rank == n and float(turning) > 1e-2 * float(x.norm()):
        return LowerBound(n + 1, f"{n} products would diagonalise its slices, whose eigenvalues are not real")
    return bound
