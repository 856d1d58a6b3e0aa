"""Changes of basis on the three sides of a table.

Bases are three invertible matrices, stacked 3 x n x n in the order of the table's axes: component, result, input.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Table = Float[Tensor, "n n n"]


def transformed(bases: Float[Tensor, "*batch 3 n n"], table: Float[Tensor, "*batch n n n"]) -> Tensor:
    """`T'[k, i, j] = sum_abc P[k, a] Q[i, b] R[j, c] T[a, b, c]`, one table for each of a batch of bases.

    Source: Albert, Non-associative algebras I (1942).
    """
    n = table.shape[-1]
    p, q, r = bases.unbind(-3)
    turned = (p @ table.flatten(-2)).unflatten(-1, (n, n))
    return q[..., None, :, :] @ turned @ r.mT[..., None, :, :]


def condition(bases: Float[Tensor, "*batch 3 n n"]) -> Float[Tensor, "*batch"]:
    """`max(|M| |M^-1|)` over the three matrices, in the spectral norm; infinite for what cannot be inverted."""
    values = torch.linalg.svdvals(bases)
    return (values[..., 0] / values[..., -1]).nan_to_num(torch.inf, torch.inf).amax(dim=-1)


def random_orthogonal(count: int, n: int, generator: torch.Generator) -> Float[Tensor, "count n n"]:
    """Draws orthogonal matrices, equally likely everywhere: the Q of normal numbers, its signs made random."""
    q, r = torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64, device="cpu"))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def balanced(table: Table, rounds: int, floor: float = 1e-3) -> tuple[Table, Float[Tensor, "3 n n"]]:
    """Makes the Gram matrices of the three sides even, one after the other; returns the bases that did it, too.

    A round multiplies each side by `(n G / trace G + floor)^(-1/2)`, `G[k, l] = sum_ij T[k, i, j] T[l, i, j]`.
    Between two tables that are balanced there are orthogonal bases where there are any. `floor` bounds how far the
    noise in a weak direction is amplified.

    Source: Kempf and Ness, The length of vectors in representation spaces (1979), for where it ends.
    """
    n = table.shape[0]
    bases = list(torch.eye(n, dtype=table.dtype, device="cpu").expand(3, n, n))
    for side in [0, 1, 2] * rounds:
        unfolded = table.movedim(side, 0).flatten(1)
        gram = unfolded @ unfolded.mT
        values, vectors = torch.linalg.eigh(gram * n / gram.trace())
        even = vectors * (values.clamp_min(0) + floor).rsqrt() @ vectors.mT
        bases[side] = even @ bases[side]
        table = (even @ unfolded).reshape(n, n, n).movedim(0, side)
    norm = table.norm()
    return table / norm, torch.stack([bases[0] / norm, bases[1], bases[2]])
