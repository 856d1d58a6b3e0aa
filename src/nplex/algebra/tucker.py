"""The best that a smaller algebra can do for a table: its nearest Tucker form."""

import torch
from jaxtyping import Float
from torch import Tensor

# Alternating steps end where the error falls by less than this share.
STILL = 1e-12


@torch.no_grad()
def smaller_error(table: Float[Tensor, "n n n"], size: int, starts: int = 5, steps: int = 500) -> float:
    """`min || table - [core; U, W, V] || / || table ||` over m x m x m cores and n x m matrices U, W, V.

    That is the best that an m-dimensional algebra can do if the n numbers of each factor may be mapped linearly to m
    and the m of the result back to n. Higher-order orthogonal iteration, from the truncated higher-order SVD and from
    random subspaces; the least error of all starts. It is an upper bound of the least one, in practice equal to it.

    Raises:
        ValueError: the size is not from 1 to n.

    Source: De Lathauwer, De Moor and Vandewalle, On the best rank-1 and rank-(R1, R2, ..., RN) approximation of
    higher-order tensors (2000).
    """
    n = table.shape[0]
    if not 1 <= size <= n:
        raise ValueError(f"size must be from 1 to n = {n}, got {size}")
    exact = table.detach().to("cpu", torch.float64)
    generator = torch.Generator("cpu").manual_seed(0)
    firsts = [[_leading(exact, axis, size) for axis in range(3)]]
    for _ in range(starts - 1):
        draws = torch.randn(3, n, size, generator=generator, dtype=torch.float64, device="cpu")
        firsts.append(list(torch.linalg.qr(draws)[0]))
    kept = max(_iterated(exact, spaces, steps) for spaces in firsts)
    return float((1 - kept / exact.square().sum()).clamp(min=0).sqrt())


def _iterated(table: Float[Tensor, "n n n"], spaces: list[Tensor], steps: int) -> float:
    """The squared norm of the core that alternating steps end with."""
    size, kept = spaces[0].shape[1], 0.0
    for _ in range(steps):
        for axis in range(3):
            seen = _seen(table, spaces, axis)
            spaces[axis] = _leading(seen, axis, size)
        before, kept = kept, float(torch.einsum("kij,ka,ib,jc->abc", table, *spaces).square().sum())
        if kept - before <= STILL * kept:
            break
    return kept


def _seen(table: Float[Tensor, "n n n"], spaces: list[Tensor], axis: int) -> Tensor:
    """The table in the coordinates of the other two spaces."""
    for other in range(3):
        if other != axis:
            table = torch.tensordot(table.movedim(other, -1), spaces[other], 1).movedim(-1, other)
    return table


def _leading(table: Tensor, axis: int, size: int) -> Float[Tensor, "n m"]:
    """The leading left singular vectors of the table flattened along one axis."""
    flat = table.movedim(axis, 0).flatten(1)
    # From the Gram matrix there are always n of them, however few columns the flattening has.
    return torch.linalg.eigh(flat @ flat.mT)[1][:, -size:]
