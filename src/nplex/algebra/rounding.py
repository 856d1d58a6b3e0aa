"""Rounding: from factors that are exact up to rounding errors to factors in small numbers that are exact."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.algebra.held import solve
from nplex.algebra.sparse import evened, sparsify
from nplex.algebra.verify import ExactAlgorithm

# The numbers that entries are rounded to.
SMALL_NUMBERS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 0.25, -0.25)
# Zeros are tried before other numbers that are nearer by less than this.
ZERO_FIRST = 0.3
THERE, EXACT, RUNAWAY = 1e-9, 1e-10, 30.0
# From the second try on, the factors are shaken by this more each time, so that another family member is met.
SHAKE = 0.05
# Further than this from the table no algorithm is near that could be rounded.
FAR = 0.2
# Entries that one try may hold or refuse, and cubed unknowns of all equations that are solved for it in all tries:
# about a minute. At n = 4 those that succeed hold fewer than 20. Above a tenth of it in one step nothing is tried.
PATIENCE, WORK = 200, 1e11
# Products of three such numbers are whole multiples of 1/64; with other tables there is nothing to look for.
GRAIN = 64


@torch.no_grad()
def round_off(
    algorithm: BilinearAlgorithm, table: Float[Tensor, "n n n"], seed: int = 0, tries: int = 20
) -> ExactAlgorithm | None:
    """An algorithm of this table with as many products, all entries in 0, +-1/4, +-1/2, +-1, +-2; or None.

    The factors given may be off by some per cent: they are first brought to the table. Then they are moved to where
    many entries are zero, the largest entry of each encoder's column is made 1, and entries are held at the nearest
    small number one by one, zeros first, while the others give way (Gauss-Newton). What cannot be held is left to
    its own. The result is checked in fractions, so it is exact or not given. Factors of more than 2,154 numbers are
    not tried: a step takes seconds there.

    Args:
        algorithm: factors near the table, of any type.
        table: n x n x n, exact as it stands (integers, halves, ...).
        seed: the same seed gives the same result.
        tries: how many members of the algorithm's family are tried.

    Raises:
        ValueError: the algorithm has another n than the table.

    Source: Smirnov, The bilinear complexity and practical algorithms for matrix multiplication (2013), for holding
    entries one by one; de Groote, On varieties of optimal algorithms for the computation of bilinear mappings II
    (1978): all algorithms of 7 products for 2 x 2 matrices are one family.
    """
    if algorithm.n != table.shape[0]:
        raise ValueError(
            f"the algorithm has n = {algorithm.n}, the table n = {table.shape[0]}; give a pair that fits"
        )
    target = table.detach().to("cpu", torch.float64)
    exact = algorithm.to(torch.float64, "cpu")
    first = evened(torch.stack([exact.encode_component, exact.decode, exact.encode_input]))
    generator = torch.Generator("cpu").manual_seed(seed)
    grains, step = target * GRAIN, first.numel() ** 3
    if step > WORK / 10:
        return None
    if not bool(first.isfinite().all()) or exact.error(target) > FAR or not torch.equal(grains, grains.round()):
        return None
    most = max(1, int(WORK / step))
    for number in range(min(tries, max(1, most // PATIENCE))):
        noise = torch.randn(first.shape, generator=generator, dtype=torch.float64, device="cpu")
        factors, error = sparsify(target, first + number * SHAKE * noise)
        if error < EXACT and bool(_scaled(factors).isfinite().all()):
            factors = _held(target, _scaled(factors), min(most, PATIENCE))
            u, w, v = factors
            rounded = ExactAlgorithm.from_factors(BilinearAlgorithm(encode_component=u, encode_input=v, decode=w))
            if _small(factors) and rounded.wrong_entries(target.tolist()) == 0:
                return rounded
    return None


def _scaled(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3 n R"]:
    """The same products, the largest entry of each encoder's column 1."""
    component, result, inputs = factors
    scales = [_largest(column) for column in (component, inputs)]
    return torch.stack([component / scales[0], result * scales[0] * scales[1], inputs / scales[1]])


def _largest(factor: Float[Tensor, "n R"]) -> Float[Tensor, "R"]:
    """The entry of each column with the largest absolute value, with its sign."""
    return factor.gather(0, factor.abs().argmax(0, keepdim=True))[0]


def _held(target: Float[Tensor, "n n n"], factors: Float[Tensor, "3 n R"], patience: int) -> Float[Tensor, "3 n R"]:
    """Holds entry after entry at a small number, while the others can still give the table."""
    numbers = factors.new_tensor(SMALL_NUMBERS)
    free = _all_but_ones(factors)
    refused = torch.zeros_like(free).reshape(-1)
    for _ in range(patience):
        factors, free = _there(factors, free, numbers)
        candidates = (free.reshape(-1) & ~refused).nonzero()[:, 0]
        if not len(candidates):
            break
        distance, nearest = (factors.reshape(-1)[candidates, None] - numbers).abs().min(1)
        first = int((distance + ZERO_FIRST * (numbers[nearest] != 0)).argmin())
        place, number = candidates[first], numbers[nearest[first]]
        wish, rest = factors.clone(), free.clone()
        wish.view(-1)[place], rest.view(-1)[place] = number, False
        solved, error = solve(target, wish, rest)
        if error < EXACT and float(solved.abs().max()) < RUNAWAY:
            factors, free = solved, rest
        else:
            refused[place] = True
    return factors


def _all_but_ones(factors: Float[Tensor, "3 n R"]) -> Bool[Tensor, "3 n R"]:
    """Free are all entries but the ones that fix the scales of the encoders' columns."""
    free = torch.ones_like(factors, dtype=torch.bool)
    for axis in (0, 2):
        free[axis].scatter_(0, factors[axis].abs().argmax(0, keepdim=True), False)
    return free


def _there(
    factors: Float[Tensor, "3 n R"], free: Bool[Tensor, "3 n R"], numbers: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "3 n R"], Bool[Tensor, "3 n R"]]:
    """Entries that are at a small number already, set to it and held; the held ones set exactly."""
    distance, nearest = (factors[..., None] - numbers).abs().min(-1)
    at = distance < THERE
    return torch.where(at, numbers[nearest], factors), free & ~at


def _small(factors: Float[Tensor, "3 n R"]) -> bool:
    """Whether all entries are small numbers."""
    return bool((factors[..., None] == factors.new_tensor(SMALL_NUMBERS)).any(-1).all())
