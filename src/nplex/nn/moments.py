"""Mean and second moment of a layer's inputs, streamed: memory is that of one square matrix."""

import torch
from jaxtyping import Float
from torch import Tensor

DOUBLE = 2048  # up to this width sums are in float64
CHUNK = 2**24  # numbers of inputs that are looked at at once


class Moments:
    """`mean = E[x]` and `C = E[(x - mean)(x - mean)^T]` of vectors that come in pieces.

    Memory is width^2 numbers: in float64 to a width of 2,048 and in float32 beyond, on the device of the vectors.

    Attributes:
        count: vectors seen.
        mean: of all of them.
        scatter: `count C`.

    Source: Chan, Golub, LeVeque, Algorithms for Computing the Sample Variance (1983): pieces are centred each, so
    that a large mean costs no digits.
    """

    mean: Float[Tensor, "width"]
    scatter: Float[Tensor, "width width"]

    def __init__(self) -> None:
        self.count = 0

    def add(self, vectors: Float[Tensor, "count width"]) -> None:
        """Takes vectors in."""
        width = vectors.shape[-1]
        dtype = torch.float64 if width <= DOUBLE and vectors.device.type != "mps" else torch.float32
        for piece in vectors.split(max(CHUNK // max(width, 1), 1)):
            if not len(piece):
                continue
            x = piece.to(dtype)
            mean, count = x.mean(0), len(x)
            x = x - mean
            if not self.count:
                self.mean, self.scatter = torch.zeros_like(mean), x.new_zeros(width, width)
            shift = mean - self.mean
            self.scatter.addmm_(x.mT, x)
            self.scatter.addr_(shift, shift, alpha=self.count * count / (self.count + count))
            self.count += count
            self.mean += shift * (count / self.count)

    @property
    def is_finite(self) -> bool:
        """Whether all vectors were."""
        return not self.count or bool(self.scatter.diagonal().isfinite().all())

    def blocks(self, n: int, b: int, *, centred: bool) -> Float[Tensor, "n n {b} {b}"]:
        """`C[j, m]`, the second moment in n x n blocks, with zeros where these are wider, and shrunk.

        The moment is centred, or about zero. Few vectors know little of C, so it is drawn to its diagonal:
        `(1 - s) C + s diag(C)`.
        """
        out = self.scatter.new_zeros(n, n, b, b)
        scale, keep = 1 / max(self.count, 1), 1 - self.shrinkage
        for j in range(n):
            for m in range(n):
                rows, columns = slice(j * b, (j + 1) * b), slice(m * b, (m + 1) * b)
                piece = self.scatter[rows, columns]
                found = out[j, m, : piece.shape[0], : piece.shape[1]].copy_(piece).mul_(scale)
                if not centred:
                    found.addr_(self.mean[rows], self.mean[columns])
                if j == m:
                    diagonal = found.diagonal().clone()
                    found.mul_(keep).diagonal().copy_(diagonal)
                else:
                    found.mul_(keep)
        return out

    @property
    def shrinkage(self) -> float:
        """How far C is drawn to its diagonal: by .01, and more with fewer vectors, to .3."""
        return min(0.3, 0.01 + 0.1 * len(self.mean) / max(self.count, 1))
