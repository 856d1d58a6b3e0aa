"""Changes of basis on the three sides of a table: isotopies.

Bases are three invertible matrices, stacked 3 x n x n in the order of the table's axes: component, result, input.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Table = Float[Tensor, "n n n"]
Bases = Float[Tensor, "3 n n"]

DRAWS = 10_000


def transformed(bases: Float[Tensor, "*batch 3 n n"], table: Float[Tensor, "*batch n n n"]) -> Tensor:
    """`T'[k, i, j] = sum_abc P[k, a] Q[i, b] R[j, c] T[a, b, c]`, one table for each of a batch of bases.

    Two tables with such bases between them are isotopic: the same product of one space with another into a third,
    written in other coordinates. What a network's rule means is known up to this, since the layers around it and
    its own components take up the three matrices.

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


def bounded(bases: Float[Tensor, "*batch 3 n n"], most: float) -> Float[Tensor, "*batch 3 n n"]:
    """The nearest matrices of condition `most` at most whose largest singular value is the same."""
    u, values, v = torch.linalg.svd(bases)
    return u * values.maximum(values[..., :1] / most)[..., None, :] @ v


def random_bases(n: int, most: float, generator: torch.Generator) -> Bases:
    """Three matrices of normal numbers, each drawn anew until its condition is at most `most`.

    Raises:
        ValueError: Of 10,000 draws fewer than three have such a condition.
    """
    found = []
    for _ in range(DRAWS):
        drawn = torch.randn(n, n, generator=generator, dtype=torch.float64, device="cpu")
        if torch.linalg.cond(drawn) <= most:
            found.append(drawn)
        if len(found) == 3:
            return torch.stack(found)
    raise ValueError(
        f"a condition of {most} at most is too rare among {n} x {n} matrices of normal numbers; "
        "allow more, or take orthogonal_bases, which have 1"
    )


def orthogonal_bases(count: int, n: int, generator: torch.Generator) -> Float[Tensor, "count 3 n n"]:
    """Three random orthogonal matrices each."""
    return random_orthogonal(3 * count, n, generator).unflatten(0, (count, 3))


def random_orthogonal(count: int, n: int, generator: torch.Generator) -> Float[Tensor, "count n n"]:
    """Random orthogonal matrices, equally likely everywhere: the Q of normal numbers, its signs made random."""
    q, r = torch.linalg.qr(torch.randn(count, n, n, generator=generator, dtype=torch.float64, device="cpu"))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def evened(table: Table, rounds: int, floor: float) -> tuple[Table, Bases]:
    """The table after making its three sides' Gram matrices even, one after the other, and the bases that did it.

    A round multiplies each side by `(n G / trace G + floor)^(-1/2)`, `G[k, l] = sum_ij T[k, i, j] T[l, i, j]`. For
    most tables it ends where all three are `1 / n` times the identity, and where there are bases between two such
    tables, there are orthogonal ones. `floor` bounds how far noise in a weak direction is amplified.

    Source: Kempf and Ness, The length of vectors in representation spaces (1979), for what it ends at.
    """
    n = table.shape[0]
    eye = torch.eye(n, dtype=table.dtype, device=table.device)
    bases = [eye, eye, eye]
    for _ in range(rounds):
        for side in range(3):
            unfolded = table.movedim(side, 0).reshape(n, n * n)
            gram = unfolded @ unfolded.mT
            values, vectors = torch.linalg.eigh(gram * n / gram.trace())
            even = vectors * (values.clamp_min(0) + floor).rsqrt() @ vectors.mT
            bases[side] = even @ bases[side]
            table = (even @ unfolded).reshape(n, n, n).movedim(0, side)
    norm = table.norm()
    return table / norm, torch.stack([bases[0] / norm, bases[1], bases[2]])
