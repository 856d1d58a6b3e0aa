"""Rounding: from factors near a table to exact factors in small numbers.

Factors are stacked 3 x n x R in the order of the table's axes: component, result, input.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.algebra.fractions import ExactAlgorithm
from nplex.algebra.levenberg_marquardt import least_squares
from nplex.algebra.search.equations import factor_gram, factorized, gradient
from nplex.algebra.search.factors import as_algorithm, balanced, stacked, sum_of_products

# The numbers that entries are rounded to.
SMALL_NUMBERS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.25, -0.25)
# Zeros are tried before other numbers that are nearer by less than this.
ZERO_FIRST = 0.3
THERE, EXACT, RUNAWAY = 1e-9, 1e-10, 30.0
# From the second try on, the factors are shaken by this more each time, so that another family member is met.
SHAKE = 0.05
# Further than this from the table no algorithm is near that could be rounded.
FAR = 0.2
# Entries that one try may constrain or refuse, and cubed unknowns of all equations that are solved for it in all
# tries: about a minute. At n = 4 those that succeed constrain fewer than 20. Above a tenth of it in one step nothing
# is tried.
PATIENCE, WORK = 200, 1e11
# Products of three such numbers are whole multiples of 1/64; with other tables there is nothing to look for.
GRAIN = 64
# The weight of the zeros that are wished for beside the table, and how large a wish may move an entry in a step.
WISH, LARGEST_MOVE = 1e-4, 0.3
# What counts as small: from entries of ordinary size down to almost nothing.
FIRST_SMALL, LEAST_SMALL, SHRINK = 1.0, 1e-3, 0.9
SPARSE_STEPS, BETWEEN = 60, 10


@torch.no_grad()
def round_off(
    algorithm: BilinearAlgorithm, table: Float[Tensor, "n n n"], seed: int = 0, tries: int = 20
) -> ExactAlgorithm | None:
    """`table[k, i, j] = sum_r encode_component[k, r] decode[i, r] encode_input[j, r]`, exactly, in small numbers.

    All entries of the result are 0, +-1/4, +-1/2, +-1 or +-2, and it has as many products as the algorithm given.
    That one may be off by some per cent: it is first brought to the table. Then it is moved to where many entries
    are zero, the largest entry of each encoder's column is made 1, and entry after entry is constrained to the
    nearest small number, zeros first, while the others give way. The result is checked in fractions.

    Examples:
        >>> from nplex.algebra import complex_, find
        >>> exact = round_off(find(complex_.table, 3).algorithm, complex_.table)
        >>> exact.rank, exact.wrong_entries(complex_.entries)
        (3, 0)

    Args:
        algorithm: Factors near the table, of any type.
        table: n x n x n, exact as it stands (integers, halves, ...).
        seed: The same seed gives the same result; torch's own random state is not touched.
        tries: How many members of the algorithm's family are tried.

    Returns:
        The exact algorithm, or None where none was found. None comes at once where the factors are more than
        20 % from the table or not finite, where an entry of the table is not a multiple of 1/64, and for more than
        2,154 factor entries, where a step takes seconds.

    Raises:
        ValueError: The algorithm has another n than the table.

    Source: Smirnov, The bilinear complexity and practical algorithms for matrix multiplication (2013), for
    constraining entries one by one; de Groote, On varieties of optimal algorithms for the computation of bilinear
    mappings II (1978): all algorithms of 7 products for 2 x 2 matrices are one family.
    """
    if algorithm.n != table.shape[0]:
        raise ValueError(
            f"the algorithm has n = {algorithm.n}, the table n = {table.shape[0]}; give a pair that fits"
        )
    target, given = table.detach().to("cpu", torch.float64), stacked(algorithm)
    if not _usable(target, given):
        return None
    first, generator = balanced(given), torch.Generator("cpu").manual_seed(seed)
    most = max(1, int(WORK / given.numel() ** 3))
    for number in range(min(tries, max(1, most // PATIENCE))):
        noise = torch.randn(first.shape, generator=generator, dtype=torch.float64, device="cpu")
        factors, error = _sparse(target, first + number * SHAKE * noise)
        factors, free = _scaled(factors)
        if error < EXACT and bool(factors.isfinite().all()):
            small = _constrained(target, factors, free, min(most, PATIENCE))
            rounded = None if small is None else ExactAlgorithm.from_factors(as_algorithm(small))
            if rounded is not None and rounded.wrong_entries(target.tolist()) == 0:
                return rounded
    return None


def _usable(target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"]) -> bool:
    """Whether there is anything to look for, in time."""
    grains = target * GRAIN
    if (
        factors.numel() ** 3 > WORK / 10
        or not bool(factors.isfinite().all())
        or not torch.equal(grains, grains.round())
    ):
        return False
    return float((target - sum_of_products(factors)).norm()) <= FAR * float(target.norm())


def _solved(
    target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"], free: Bool[Tensor, "3 n R"] | None = None
) -> tuple[Float[Tensor, "3 n R"], float]:
    """Lowers `|| target - sum of products ||` by the free entries, or all; the factors reached and their error."""
    places = None if free is None else free.reshape(-1).nonzero()[:, 0]

    def residual(unknowns: Tensor, _: Tensor) -> Tensor:
        return target - sum_of_products(unknowns)

    def equations(unknowns: Tensor, left: Tensor, _: Tensor) -> Callable[[Tensor], Tensor]:
        move = factorized(unknowns, gradient(left, unknowns), places)
        return lambda damping: unknowns + move(damping)

    start = factors[None]
    reached, tracks = least_squares(start, residual, equations, steps=60, tolerance=1e-12, damping=1e-3, window=5)
    return reached[0], tracks[0].error


def _sparse(target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"]) -> tuple[Float[Tensor, "3 n R"], float]:
    """Lowers `sum log(x^2 + small^2)` over all entries x, on the table; the factors reached and their error.

    Algorithms come in families: a table keeps its numbers under changes of basis that the factors do not. Least
    squares with weights made anew at every step, `1 / (x^2 + small^2)`, while small shrinks, moves along the family.
    Every tenth step goes back to the table and gives the three columns of each term equal norms.

    Source: Daubechies, DeVore, Fornasier and Gunturk, Iteratively reweighted least squares minimization for sparse
    recovery (2010), for the weights; the constraint there is linear.
    """
    small = FIRST_SMALL
    for step in range(SPARSE_STEPS):
        if step % BETWEEN == 0:
            factors, _ = _solved(target, balanced(factors))
        entries = factors.reshape(-1)
        weights = WISH / (entries.square() + small**2)
        gram = factor_gram(factors[None])[0]
        gram.diagonal().add_(weights)
        slope = gradient((target - sum_of_products(factors))[None], factors[None]).reshape(-1) - weights * entries
        move = torch.linalg.solve(gram, slope)
        scale = min(1.0, LARGEST_MOVE * float(entries.abs().max()) / max(float(move.abs().max()), 1e-30))
        factors = factors + scale * move.reshape(factors.shape)
        small = max(small * SHRINK, LEAST_SMALL)
    return _solved(target, balanced(factors))


def _scaled(factors: Float[Tensor, "3 n R"]) -> tuple[Float[Tensor, "3 n R"], Bool[Tensor, "3 n R"]]:
    """The same products, the largest entry of each encoder's column 1; and which entries are not these ones."""
    places = factors.abs().argmax(1, keepdim=True)
    scales = factors.gather(1, places)
    scales[1] = 1 / (scales[0] * scales[2])
    free = torch.ones_like(factors, dtype=torch.bool).scatter_(1, places, False)
    free[1] = True
    return factors / scales, free


def _constrained(
    target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"], free: Bool[Tensor, "3 n R"], patience: int
) -> Float[Tensor, "3 n R"] | None:
    """Constrains free entries one by one to small numbers, while the others can still give the table; None if not."""
    numbers = factors.new_tensor(SMALL_NUMBERS)
    refused = torch.zeros_like(free).reshape(-1)
    for _ in range(patience):
        # Entries that are at a small number already need no descent.
        distance, nearest = (factors[..., None] - numbers).abs().min(-1)
        there = distance < THERE
        factors, free = torch.where(there, numbers[nearest], factors), free & ~there
        candidates = (free.reshape(-1) & ~refused).nonzero()[:, 0]
        if not len(candidates):
            break
        cost = (distance + ZERO_FIRST * (nearest != 0)).reshape(-1)[candidates]
        position = candidates[cost.argmin()]
        wish, rest = factors.clone(), free.clone()
        wish.view(-1)[position], rest.view(-1)[position] = numbers[nearest.view(-1)[position]], False
        solved, error = _solved(target, wish, rest)
        if error < EXACT and float(solved.abs().max()) < RUNAWAY:
            factors, free = solved, rest
        else:
            refused[position] = True
    return None if bool(free.any()) else factors
