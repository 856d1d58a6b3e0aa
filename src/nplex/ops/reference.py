"""The paper's formula, literally: the oracle that every other method is compared with. Never fast."""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops.method import Method


def weight(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n a b"]
) -> Float[Tensor, "n*a n*b"]:
    """`W = sum_k kron(rule[k], components[k])`.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equation (4).
    """
    table = as_table(rule)
    terms = [torch.kron(face, block) for face, block in zip(table, components, strict=True)]
    return torch.stack(terms).sum(0)


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[()] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`y = x W^T + bias` with `W = sum_k kron(rule[k], components[k])`; nothing is ever prepared."""
    y = torch.matmul(x, weight(rule, components).transpose(-1, -2))
    return y if bias is None else y + bias.to(y.dtype)


METHOD = Method("reference", product)
