"""The damped step of a table as a sum of products: by a factorization, or by conjugate gradients where n is large.

J is the n^3 x 3nR matrix of derivatives of the sum of products by the factors. `J^T J` times a vector is four batches
of matmuls with n x R and R x R matrices, 24 n R^2 operations, where one factorization takes 9 (n R)^3.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nplex.algebra.search.factors import sum_of_products

# Up to this size of the equations (n = 9) one factorization is faster than conjugate gradients.
FACTORIZED = 800
# Up to this one (n = 13) what they do not solve is left to a factorization; beyond, that takes too long itself.
FACTORIZABLE = 2400
# Moves that leave more than this of the gradient are too many, those that leave less too dear (found by trial).
SOLVED, MOST_SOLVED = 1e-2, 1e-4
# Products for one move, at most: so many, and no more than half as many operations as a factorization has.
MOST_PRODUCTS = 2000
# Of two axes the third; 3 is none.
THIRD = [[3, 2, 1], [2, 3, 0], [1, 0, 3]]


class Moves:
    """From dampings to `(J^T J + (damping + weight) I)^-1 (J^T residual - weight factors)`, NaN if singular.

    For many unknowns it is solved roughly; the smaller the residual, the less so, such that the last steps still
    nearly square the error. What conjugate gradients do not solve once is factorized from then on: it will be harder
    nearer to the table. Where that is too large, the move is what they gave: the next goes on from better factors.
    """

    def __init__(self, n: int, rank: int):
        size = min(n**3, 3 * n * rank)
        self.factorizes = size <= FACTORIZED
        self.may_factorize = size <= FACTORIZABLE

    def at(
        self, factors: Float[Tensor, "b 3 n R"], residual: Float[Tensor, "b n n n"], weight: Float[Tensor, "b"]
    ) -> Callable[[Float[Tensor, "b"]], Float[Tensor, "b 3 n R"]]:
        """Those from these factors."""
        solve = _smaller(factors, residual, weight) if self.factorizes else None

        def move(damping: Tensor) -> Tensor:
            nonlocal solve
            shift = damping + weight
            if solve is None:
                wish = _wish(factors, residual, weight)
                lefts = residual.flatten(1).norm(dim=1).sqrt().clamp(MOST_SOLVED, SOLVED)
                ways = zip(factors, wish, shift.tolist(), lefts.tolist(), strict=True)
                solutions, solved = zip(*(conjugate_gradients(*way) for way in ways), strict=True)
                if all(solved) or not self.may_factorize:
                    return torch.stack(solutions)
                self.factorizes, solve = True, _smaller(factors, residual, weight)
            return solve(shift)

        return move


def _wish(
    factors: Float[Tensor, "b 3 n R"], residual: Float[Tensor, "b n n n"], weight: Float[Tensor, "b"]
) -> Float[Tensor, "b 3 n R"]:
    return gradient(residual, factors) - weight[:, None, None, None] * factors


def gradient(y: Float[Tensor, "b n n n"], factors: Float[Tensor, "b 3 n R"]) -> Float[Tensor, "b 3 n R"]:
    """`J^T y`: for the first factor `[k, r] = sum_ij y[k, i, j] w[i, r] v[j, r]`, and so on."""
    u, w, v = factors.unbind(1)
    shape = *y.shape[:3], factors.shape[3]
    with_v = (y.flatten(1, 2) @ v).reshape(shape)  # k, i, r
    with_u = (y.flatten(2).mT @ u).reshape(shape)  # i, j, r
    rows = w[:, :, None]
    return torch.stack([(with_v * w[:, None]).sum(2), (with_v * u[:, :, None]).sum(1), (with_u * rows).sum(1)], 1)


def factor_gram(factors: Float[Tensor, "b 3 n R"]) -> Float[Tensor, "b 3*n*R 3*n*R"]:
    """`J^T J`: diagonal blocks I (x) (product of the other two Gram matrices), and the mixed ones.

    The mixed block of axes a and b, c being the third, is
    `[k, r, i, s] = factors[a, k, s] factors[b, i, r] (factors[c]^T factors[c])[r, s]`.
    """
    count, _, n, rank = factors.shape
    grams = factors.mT @ factors
    third = torch.cat([grams, torch.zeros_like(grams[:, :1])], 1)[:, THIRD].transpose(2, 3)  # a, r, b, s
    turned = factors.permute(0, 3, 1, 2)[:, None, ..., None] * third[:, :, :, :, None]  # a, r, b, i, s
    system = factors[:, :, :, None, None, None] * turned[:, :, None]
    own = system.diagonal(dim1=1, dim2=4).diagonal(dim1=1, dim2=3)  # r, s, a, k
    own.copy_((grams.roll(-1, 1) * grams.roll(-2, 1)).permute(0, 2, 3, 1)[..., None])
    return system.reshape(count, 3 * n * rank, 3 * n * rank)


def result_gram(factors: Float[Tensor, "b 3 n R"]) -> Float[Tensor, "b n**3 n**3"]:
    """`J J^T`, the sum over the three axes of (Gram of the other two factors' products) (x) identity."""
    count, _, n, _ = factors.shape
    gram, (u, w, v) = factors.new_zeros(count, *[n] * 6), factors.unbind(1)
    pairs = (torch.stack([w, u, u], 1)[:, :, :, None] * torch.stack([v, v, w], 1)[:, :, None]).flatten(2, 3)
    for axis, products in enumerate((pairs @ pairs.mT).reshape(count, 3, n, n, n, n, 1).unbind(1)):
        gram.diagonal(dim1=axis + 1, dim2=axis + 4).add_(products)
    return gram.reshape(count, n**3, n**3)


def factorized(
    factors: Float[Tensor, "b 3 n R"], wish: Float[Tensor, "b 3 n R"], free: Int[Tensor, "free"] | None = None
) -> Callable[[Float[Tensor, "b"]], Float[Tensor, "b 3 n R"]]:
    """From shifts to `(J^T J + shift I)^-1 wish` by Cholesky factorizations, NaN where that is singular.

    Args:
        factors: Where J is taken.
        wish: The right sides.
        free: The numbers of the unknowns that may move, in whose rows and columns alone it is solved; all by default.
    """
    gram, right = factor_gram(factors), wish.flatten(1)
    if free is None:
        everything = _damped(gram)
        return lambda shift: everything(shift, right).reshape(wish.shape)
    damped, right = _damped(gram[:, free[:, None], free]), right[:, free]

    def solve(shift: Tensor) -> Tensor:
        solution = torch.zeros_like(wish)
        solution.flatten(1)[:, free] = damped(shift, right)
        return solution

    return solve


def _smaller(
    factors: Float[Tensor, "b 3 n R"], residual: Float[Tensor, "b n n n"], weight: Float[Tensor, "b"]
) -> Callable[[Float[Tensor, "b"]], Float[Tensor, "b 3 n R"]]:
    """What `factorized` gives, by `J J^T` where equations are fewer than unknowns, as at the generic rank.

    With `s = weight / shift` it is `J^T (J J^T + shift I)^-1 (residual + s J factors) - s factors`; `J factors` is 3
    times the sum of products, which is homogeneous of degree 3.
    """
    n, rank = factors.shape[2:]
    if n * n > 3 * rank:
        return factorized(factors, _wish(factors, residual, weight))
    damped, products = _damped(result_gram(factors)), sum_of_products(factors)

    def solve(shift: Tensor) -> Tensor:
        share = (weight / shift)[:, None, None, None]
        solved = damped(shift, (residual + 3 * share * products).flatten(1))
        return gradient(solved.reshape(residual.shape), factors) - share * factors

    return solve


def _damped(gram: Float[Tensor, "b m m"]) -> Callable[[Float[Tensor, "b"], Float[Tensor, "b m"]], Tensor]:
    """From a shift and a right side to `(gram + shift I)^-1 right`, NaN where that is singular."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    own = diagonal.clone()

    def solve(shift: Tensor, right: Tensor) -> Tensor:
        torch.add(own, shift[:, None], out=diagonal)  # in place: copies would take as long as small factorizations
        lower, failed = torch.linalg.cholesky_ex(gram)
        half = torch.linalg.solve_triangular(lower, right[..., None], upper=False)
        solved = torch.linalg.solve_triangular(lower.mT, half, upper=True)[..., 0]
        return solved.masked_fill_(failed[:, None] > 0, torch.nan)

    return solve


def conjugate_gradients(
    factors: Float[Tensor, "3 n R"], wish: Float[Tensor, "3 n R"], shift: float, left: float
) -> tuple[Float[Tensor, "3 n R"], bool]:
    """`(J^T J + shift I)^-1 wish` without ever writing J down, and whether it is that.

    It is when `sqrt(r^T D^-1 r)`, r being what is left of the wish, is down to `left` times what it was. D is the
    preconditioner, `J^T J + shift I` in its diagonal blocks alone.

    Source: Sorber, Van Barel, De Lathauwer, Optimization-based algorithms for tensor decompositions: canonical
    polyadic decomposition, decomposition in rank-(Lr,Lr,1) terms, and a new generalization (2013), for the
    product and for the diagonal blocks as preconditioner.
    """
    n, rank = factors.shape[1:]
    grams = factors.mT @ factors
    nexts, others = grams.roll(-1, 0), grams.roll(-2, 0)
    blocks = nexts * others
    blocks.diagonal(dim1=1, dim2=2).add_(shift)
    lower, failed = torch.linalg.cholesky_ex(blocks)
    if bool(failed.any()):
        return torch.full_like(wish, torch.nan), False
    inverse = torch.cholesky_inverse(lower)

    def times(x: Tensor) -> Tensor:
        mixed = x.mT @ factors
        weights = mixed.roll(-1, 0).mul_(others).addcmul_(mixed.roll(-2, 0), nexts)
        return (factors @ weights).baddbmm_(x, blocks)

    solution, rest = torch.zeros_like(wish), wish.clone()
    direction = rest @ inverse
    first = height = _dot(rest, direction)
    for _ in range(min(MOST_PRODUCTS, 27 * n**2 * rank // 144)):
        if not height > left**2 * first:
            break
        product = times(direction)
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
