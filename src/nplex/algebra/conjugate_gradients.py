"""The damped normal equations of a table as a sum of products, solved without ever writing them down.

`J^T J` times a vector is four batches of matmuls with n x R and R x R matrices, 24 n R^2 operations, where one
factorization takes n^9 / 3: at n = 20 as many as 20 thousand products.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.normal_equations import gradient, size

# Moves that leave more than this of the gradient are too many, those that leave less too dear (found by trial).
SOLVED = 0.01
MOST_SOLVED = 1e-4
# Products for one move, at most: so many, and no more than half as many operations as a factorization has.
MOST_PRODUCTS = 2000
# Up to this size (n = 13) a move that takes more is left to a factorization; beyond, that takes too long itself.
FACTORIZABLE = 2200


class IteratedEquations(NamedTuple):
    """`J^T J` at some factors, as a product with vectors, and its preconditioner.

    Source: Sorber, Van Barel, De Lathauwer, Optimization-based algorithms for tensor decompositions: canonical
    polyadic decomposition, decomposition in rank-(Lr,Lr,1) terms, and a new generalization (2013), for the
    product and for the diagonal blocks as preconditioner.

    Attributes:
        factors: 3 x n x R.
        nexts: The Gram matrices, R x R, of the factors of the next axis; for the last that is the first.
        others: Those of the axis after the next.
        blocks: `nexts * others`, whose n copies are the diagonal blocks of J^T J.
    """

    factors: Tensor
    nexts: Tensor
    others: Tensor
    blocks: Tensor

    @classmethod
    def at(cls, factors: Float[Tensor, "3 n R"]) -> "IteratedEquations":
        """Those at these factors."""
        grams = factors.mT @ factors
        nexts, others = grams.roll(-1, 0), grams.roll(-2, 0)
        return cls(factors, nexts, others, nexts * others)

    def times(self, x: Float[Tensor, "3 n R"], shift: float) -> Float[Tensor, "3 n R"]:
        """`(J^T J + shift I) x`, with `x[a] blocks[a] + factors[a] sum_b (x[b]^T factors[b] * gram[c]) + shift x[a]`.

        The sum is over the two axes b other than a; c is the third.
        """
        mixed = x.mT @ self.factors
        weights = mixed.roll(-1, 0).mul_(self.others).addcmul_(mixed.roll(-2, 0), self.nexts)
        return (self.factors @ weights).baddbmm_(x, self.blocks).add_(x, alpha=shift)

    def preconditioner(self, shift: float) -> Float[Tensor, "3 R R"] | None:
        """`(blocks + shift I)^-1`, or None if that is singular."""
        damped = self.blocks.clone()
        damped.diagonal(dim1=1, dim2=2).add_(shift)
        lower, failed = torch.linalg.cholesky_ex(damped)
        return None if bool(failed.any()) else torch.cholesky_inverse(lower)

    def move(self, residual: Float[Tensor, "n n n"], damping: float, penalty: float) -> Float[Tensor, "3 n R"] | None:
        """`(J^T J + (damping + penalty) I)^-1 (J^T residual - penalty factors)`, roughly.

        The smaller the residual, the less rough, so that the last steps still nearly square the error. None
        if it is singular, or so nearly that a factorization is the better way. Where that would be too large, the
        move is what the products gave: the next goes on from better factors.
        """
        inverse = self.preconditioner(damping + penalty)
        if inverse is None:
            return None
        wish = gradient(residual, self.factors) - penalty * self.factors
        left = min(SOLVED, max(MOST_SOLVED, float(residual.norm()) ** 0.5))
        n, rank = self.factors.shape[1:]
        most = min(MOST_PRODUCTS, size(self.factors) ** 3 // (144 * n * rank**2))
        solution, solved = self.solve(wish, damping + penalty, inverse, left, most)
        return solution if solved or size(self.factors) > FACTORIZABLE else None

    def solve(
        self, wish: Float[Tensor, "3 n R"], shift: float, inverse: Float[Tensor, "3 R R"], left: float, most: int
    ) -> tuple[Float[Tensor, "3 n R"], bool]:
        """`(J^T J + shift I)^-1 wish` by preconditioned conjugate gradients, and whether it is that.

        It is when `sqrt(r^T inverse r)`, r being what is left of the wish, is down to `left` times what it was.
        """
        solution, rest = torch.zeros_like(wish), wish.clone()
        direction = rest @ inverse
        first = height = _dot(rest, direction)
        for _ in range(most):
            if not height > left**2 * first:
                return solution, True
            product = self.times(direction, shift)
            curvature = _dot(direction, product)
            # Rounding may leave none where J^T J is singular and hardly damped.
            if not curvature > 0:
                break
            solution.add_(direction, alpha=height / curvature)
            rest.sub_(product, alpha=height / curvature)
            preconditioned = rest @ inverse
            height, before = _dot(rest, preconditioned), height
            direction.mul_(height / before).add_(preconditioned)
        return solution, not height > left**2 * first


def _dot(x: Tensor, y: Tensor) -> float:
    return float(torch.dot(x.reshape(-1), y.reshape(-1)))
