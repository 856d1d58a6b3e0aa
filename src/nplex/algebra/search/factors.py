"""Three factors as one tensor, 3 x n x R, in the order of the table's axes: component, result, input."""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm


def stacked(algorithm: BilinearAlgorithm) -> Float[Tensor, "3 n R"]:
    """Its factors in one tensor, in float64 on the CPU."""
    exact = algorithm.to(torch.float64, "cpu")
    return torch.stack([exact.encode_component, exact.decode, exact.encode_input])


def as_algorithm(factors: Float[Tensor, "3 n R"]) -> BilinearAlgorithm:
    """The inverse of `stacked`."""
    component, result, inputs = factors
    return BilinearAlgorithm(encode_component=component, encode_input=inputs, decode=result)


def sum_of_products(factors: Float[Tensor, "*b 3 n R"]) -> Float[Tensor, "*b n n n"]:
    """`[k, i, j] = sum_r factors[0, k, r] factors[1, i, r] factors[2, j, r]`."""
    u, w, v = factors.unbind(-3)
    pairs = w.unsqueeze(-2) * v.unsqueeze(-3)
    return (u @ pairs.flatten(-3, -2).mT).reshape(*pairs.shape[:-1], -1)


def balanced(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "3 n R"]:
    """The same products, the three columns of each of equal norms; a term with a column of zeros stays as it is."""
    norms = factors.norm(dim=1, keepdim=True)
    even = norms.prod(dim=0, keepdim=True) ** (1 / 3)
    return torch.where(even > 0, factors * even / norms, factors)


def growth(factors: Float[Tensor, "3 n R"]) -> float:
    """`|| (|u_r| |w_r| |v_r|)_r ||`."""
    return float(factors.norm(dim=1).prod(dim=0).norm())


def random_factors(n: int, rank: int, generator: torch.Generator) -> Float[Tensor, "3 n R"]:
    """Gaussian factors, scaled so that their sum of products has norm 2 (found by trial to work best)."""
    factors = torch.randn(3, n, rank, generator=generator, dtype=torch.float64, device="cpu")
    return factors * (2 / sum_of_products(factors).norm()) ** (1 / 3)


def check_factors(start: object, n: int, rank: int | None) -> None:
    """Refuses a start that is not an algorithm for tables of this n, or has another rank.

    Raises:
        TypeError: It is not a BilinearAlgorithm.
        ValueError: It does not fit, or is not finite.
    """
    if not isinstance(start, BilinearAlgorithm):
        raise TypeError(f"start must be a BilinearAlgorithm, got {type(start).__name__}; give a search's algorithm")
    shapes = [tuple(factor.shape) for factor in start]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1 or shapes[0][0] != n or shapes[0][1] < 1:
        raise ValueError(f"start must hold three factors {n} x R for this table of n = {n}, got shapes {shapes}")
    if rank not in (None, start.rank):
        raise ValueError(f"start has {start.rank} products but rank is {rank}; leave out one of the two")
    if not all(bool(factor.isfinite().all()) and not factor.is_complex() for factor in start):
        raise ValueError("start must be real and finite, got factors that are not; leave it out")
