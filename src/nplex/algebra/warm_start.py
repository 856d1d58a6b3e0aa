"""A search that starts from factors which are near."""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm


def check_start(start: object, n: int, rank: int | None) -> None:
    """Refuses factors that are none for this table and this rank."""
    if not isinstance(start, BilinearAlgorithm):
        raise TypeError(f"start must be a BilinearAlgorithm, got {type(start).__name__}; give a search's algorithm")
    shapes = [tuple(factor.shape) for factor in start]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1 or shapes[0][0] != n or shapes[0][1] < 1:
        raise ValueError(f"start must hold three factors {n} x R for this table of n = {n}, got shapes {shapes}")
    if rank not in (None, start.rank):
        raise ValueError(f"start has {start.rank} products but rank is {rank}; leave out one of the two")
    if not all(bool(factor.isfinite().all()) and not factor.is_complex() for factor in start):
        raise ValueError("start must be real and finite, got factors that are not; leave it out")


def near_factors(start: BilinearAlgorithm, scale: float) -> Float[Tensor, "3 n R"]:
    """The factors of the table divided by `scale`, the columns of a term as even as they can be."""
    exact = start.to(torch.float64, "cpu")
    factors = torch.stack([exact.encode_component, exact.decode, exact.encode_input]) / scale ** (1 / 3)
    norms = factors.norm(dim=1, keepdim=True)
    even = norms.prod(dim=0, keepdim=True) ** (1 / 3)
    # A term with a column of zeros has no even form but zero, from which it could not move any more.
    return torch.where(even > 0, factors * even / norms, factors)
