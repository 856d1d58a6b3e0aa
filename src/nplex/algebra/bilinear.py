"""Bilinear algorithms: a multiplication table as a sum of R products.

Gauss multiplies complex numbers with 3 real products, quaternions need 8, 2 x 2 matrices 7 (Strassen). Every
n x n x n table, a learned one too, has some least number of them: its tensor rank.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class BilinearAlgorithm(NamedTuple):
    """`rule[k, i, j] = sum_r encode_component[k, r] * decode[i, r] * encode_input[j, r]`.

    To multiply e_k by e_j: encode both sides into R numbers, multiply these number by number, decode the R
    products into the n of the result. A tuple of three tensors, so a pytree; they may require gradients.

    Attributes:
        encode_component: n x R, applied to the left factor (a layer's components).
        encode_input: n x R, applied to the right factor (a layer's input).
        decode: n x R, applied to the R products.
    """

    encode_component: Tensor
    encode_input: Tensor
    decode: Tensor

    @property
    def n(self) -> int:
        """The dimension of the algebra."""
        return self.encode_component.shape[0]

    @property
    def rank(self) -> int:
        """R, the number of products."""
        return self.encode_component.shape[1]

    def table(self) -> Float[Tensor, "n n n"]:
        """`[k, i, j] = sum_r encode_component[k, r] decode[i, r] encode_input[j, r]`, differentiable."""
        n, rank = self.encode_component.shape
        pairs = self.decode[:, None, :] * self.encode_input[None, :, :]
        return (self.encode_component @ pairs.reshape(n * n, rank).transpose(-1, -2)).reshape(n, n, n)

    def error(self, table: Float[Tensor, "n n n"]) -> float:
        """`|| self.table() - table || / || table ||`, Frobenius norms, computed in float64."""
        exact = table.detach().double().cpu()
        return float((self.to(torch.float64, "cpu").table() - exact).norm() / exact.norm())

    @property
    def growth(self) -> float:
        """`|| (|u_r| |v_r| |w_r|)_r || / || table ||`: how far rounding errors are amplified; 1 is best."""
        factors = self.to(torch.float64, "cpu")
        terms = factors.encode_component.norm(dim=0) * factors.encode_input.norm(dim=0) * factors.decode.norm(dim=0)
        return float(terms.norm() / factors.table().norm())

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> "BilinearAlgorithm":
        """A detached copy of another type, on another device."""
        return BilinearAlgorithm(*(factor.detach().to(device=device, dtype=dtype) for factor in self))


def generic_rank(n: int) -> int:
    """`ceil(n^3 / (3n - 2))`, the rank of almost every complex n x n x n tensor; n = 3 is the exception, 5.

    Over the real numbers it is the least rank that a random table has with positive probability; the next one
    is met now and then (n = 2: rank 3 for about one table in five).

    Source: Strassen, Rank and optimal computation of generic tensors (1983), theorem 4.6 for n = 3; Lickteig,
    Typical tensorial rank (1985), theorem 4.4 for all others.
    """
    return 5 if n == 3 else math.ceil(n**3 / (3 * n - 2))


def as_table(rule: Tensor | BilinearAlgorithm) -> Float[Tensor, "n n n"]:
    """The table `[k, i, j]` of a rule that is held as a table or as factors."""
    return rule if isinstance(rule, Tensor) else rule.table()


def exact_table(what: str, table: Tensor) -> Float[Tensor, "n n n"]:
    """A detached float64 copy on the CPU of a table that is a cube of real, finite numbers and not all zeros.

    Raises:
        ValueError: It is not such a table, which is named by `what`.
    """
    if table.ndim != 3 or len(set(table.shape)) != 1 or table.shape[0] == 0:
        raise ValueError(f"{what} must be a cube n x n x n, got shape {tuple(table.shape)}; pad it with zeros")
    check_real(what, table)
    exact = table.detach().to_dense().to("cpu", torch.float64)
    if bad := int((~exact.isfinite()).sum()):
        raise ValueError(f"{what} must be finite, got {bad} NaN or infinite entries; fix the step that produced them")
    if not bool(exact.any()):
        raise ValueError(f"{what} must not be all zeros: the zero product belongs to no algebra")
    return exact


def check_real(what: str, numbers: Tensor) -> None:
    """Refuses complex numbers, and a tensor that holds no numbers.

    Raises:
        ValueError: names them by `what`.
    """
    if numbers.is_complex():
        raise ValueError(f"{what} must be real, got {numbers.dtype}; write complex numbers as pairs of reals")
    if numbers.is_meta:
        raise ValueError(f"{what} must have numbers, got a tensor on the meta device; load its weights first")
