"""From one algorithm to another of the same table that has many zeros.

Algorithms come in families: a table keeps its numbers under changes of basis that the factors do not (for 2 x 2
matrices all algorithms of 7 products are one such family). Along the family the factors can be moved for nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.held import solve
from nplex.algebra.normal_equations import factor_gram, gradient, sum_of_products

# The weight of the zeros that are wished for beside the table, and how large a wish may move an entry in a step.
WISH, LARGEST_MOVE = 1e-4, 0.3
# What counts as small: from entries of ordinary size down to almost nothing.
FIRST_SMALL, LEAST_SMALL, SHRINK = 1.0, 1e-3, 0.9
STEPS, BETWEEN = 60, 10


def sparsify(target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"]) -> tuple[Float[Tensor, "3 n R"], float]:
    """Lowers `sum log(x^2 + small^2)` over all entries x, on the table; the factors reached and their error.

    Least squares with weights made anew at every step, `1 / (x^2 + small^2)`, while small shrinks. Every tenth step
    goes back to the table and gives the three columns of each term equal norms.

    Source: Daubechies, DeVore, Fornasier and Gunturk, Iteratively reweighted least squares minimization for sparse
    recovery (2010), for the weights; the constraint there is linear.
    """
    small, everything = FIRST_SMALL, torch.ones_like(factors, dtype=torch.bool)
    for step in range(STEPS):
        if step % BETWEEN == 0:
            factors, _ = solve(target, evened(factors), everything)
        factors = factors + _wish(target, factors, small)
        small = max(small * SHRINK, LEAST_SMALL)
    return solve(target, evened(factors), everything)


def evened(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3 n R"]:
    """The same products, the three columns of each of equal norms; a term with a column of zeros is all zeros."""
    norms = factors.norm(dim=1, keepdim=True)
    even = norms.prod(dim=0, keepdim=True) ** (1 / 3)
    return torch.where(norms > 0, factors * even / norms, 0.0)


def _wish(target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"], small: float) -> Float[Tensor, "3 n R"]:
    """One step of the weighted least squares, shortened where it would leave the table's neighbourhood."""
    entries = factors.reshape(-1)
    weights = WISH / (entries.square() + small**2)
    gram = factor_gram(factors)
    gram.diagonal().add_(weights)
    slope = gradient(target - sum_of_products(factors), factors).reshape(-1) - weights * entries
    move = torch.linalg.solve(gram, slope)
    scale = min(1.0, LARGEST_MOVE * float(entries.abs().max()) / max(float(move.abs().max()), 1e-30))
    return scale * move.reshape(factors.shape)
