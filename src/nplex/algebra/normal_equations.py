"""The damped normal equations of a table as a sum of products, solved by one factorization.

J is the n^3 x 3nR matrix of derivatives of the sum of products by the three factors. Those are stacked 3 x n x R
in the order of the table's axes: component, result, input.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def sum_of_products(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "n n n"]:
    """`[k, i, j] = sum_r factors[0, k, r] factors[1, i, r] factors[2, j, r]`."""
    u, w, v = factors
    n, rank = u.shape
    return (u @ (w[:, None] * v).reshape(n * n, rank).mT).reshape(n, n, n)


def gradient(y: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3 n R"]:
    """`J^T y`: for the first factor `[k, r] = sum_ij y[k, i, j] w[i, r] v[j, r]`, and so on."""
    u, w, v = factors
    n, rank = u.shape
    with_v = y @ v  # k, i, r
    with_u = (y.reshape(n, n * n).mT @ u).reshape(n, n, rank)  # i, j, r
    return torch.stack([(with_v * w).sum(1), (with_v * u[:, None]).sum(0), (with_u * w[:, None]).sum(0)])


class FactorizedEquations(NamedTuple):
    """`J J^T` or `J^T J` at some factors, whichever is smaller; a damping costs a third of its size cubed.

    Attributes:
        factors: 3 x n x R.
        gram: n^3 x n^3 or 3nR x 3nR.
    """

    factors: Tensor
    gram: Tensor

    @classmethod
    def at(cls, factors: Float[Tensor, "3 n R"]) -> "FactorizedEquations":
        """Those at these factors."""
        return cls(factors, result_gram(factors) if underdetermined(factors) else factor_gram(factors))

    def move(self, residual: Float[Tensor, "n n n"], damping: float, penalty: float) -> Float[Tensor, "3 n R"] | None:
        """`(J^T J + (damping + penalty) I)^-1 (J^T residual - penalty factors)`, or None if that is singular.

        When there are more unknowns than equations, as at the generic rank, the same move is found from J J^T:
        with s = penalty / (damping + penalty) it is `J^T (J J^T + (damping + penalty) I)^-1 (residual +
        s J factors) - s factors`, and J factors = 3 times the sum of products, which is homogeneous of degree 3.
        """
        shift = damping + penalty
        damped = self.gram.clone()
        damped.diagonal().add_(shift)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            return None
        if not underdetermined(self.factors):
            wish = gradient(residual, self.factors) - penalty * self.factors
            return torch.cholesky_solve(wish.reshape(-1, 1), lower).reshape(wish.shape)
        share = penalty / shift
        wish = residual + 3 * share * sum_of_products(self.factors)
        solved = torch.cholesky_solve(wish.reshape(-1, 1), lower).reshape(wish.shape)
        return gradient(solved, self.factors) - share * self.factors


def size(factors: Float[Tensor, "3 n R"]) -> int:
    """Of the smaller of J J^T and J^T J."""
    n, rank = factors.shape[1:]
    return min(n**3, 3 * n * rank)


def underdetermined(factors: Float[Tensor, "3 n R"]) -> bool:
    """Whether J J^T, n^3 x n^3, is no larger than J^T J, 3nR x 3nR."""
    n, rank = factors.shape[1:]
    return n * n <= 3 * rank


def result_gram(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "n**3 n**3"]:
    """`J J^T`, the sum over the three axes of (Gram of the other two factors' products) (x) identity."""
    n, rank = factors.shape[1:]
    gram = factors.new_zeros(n, n, n, n, n, n)
    for axis in range(3):
        first, second = (factors[other] for other in range(3) if other != axis)
        pairs = (first[:, None] * second).reshape(n * n, rank)
        gram.diagonal(dim1=axis, dim2=axis + 3).add_((pairs @ pairs.mT).reshape(n, n, n, n, 1))
    return gram.reshape(n**3, n**3)


def factor_gram(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3*n*R 3*n*R"]:
    """`J^T J`: diagonal blocks I (x) (product of the other two Gram matrices), and the mixed ones.

    The mixed block of axes a and b, c being the third, is
    `[k, r, i, s] = factors[a, k, s] factors[b, i, r] (factors[c]^T factors[c])[r, s]`.
    """
    n, rank = factors.shape[1:]
    grams = factors.mT @ factors
    system = factors.new_zeros(3, n, rank, 3, n, rank)
    for a in range(3):
        b, c = (a + 1) % 3, (a + 2) % 3
        system[a, :, :, a].diagonal(dim1=0, dim2=2).copy_((grams[b] * grams[c])[..., None].expand(-1, -1, n))
        mixed = factors[a][:, None, None, :] * factors[b].mT[None, :, :, None] * grams[c][None, :, None, :]
        system[a, :, :, b] = mixed
        system[b, :, :, a] = mixed.permute(2, 3, 0, 1)
    return system.reshape(3 * n * rank, 3 * n * rank)
