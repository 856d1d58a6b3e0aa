"""The bilinear method: mix the inputs to R blocks, R independent block products, mix to n outputs.

The only method that saves arithmetic: R / n^2 of the dense layer's, for a rule of rank R.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm


def blocks(rule: BilinearAlgorithm, components: Float[Tensor, "n a b"]) -> Float[Tensor, "R a b"]:
    """`blocks[r] = sum_k encode_component[k, r] components[k]`."""
    n, a, b = components.shape
    return torch.matmul(rule.encode_component.mT, components.reshape(n, a * b)).reshape(-1, a, b)


def formula(
    x: Float[Tensor, "tokens n b"],
    rule: BilinearAlgorithm,
    blocks: Float[Tensor, "R a b"],
    bias: Float[Tensor, "d_out"] | None,
) -> Float[Tensor, "tokens n a"]:
    """`y[i] = sum_r decode[i, r] (blocks[r] sum_j encode_input[j, r] x[j])`, for all tokens at once.

    Differentiable any number of times, easy to transform and to compile; `tiles.product` is the same, faster.
    x is copied into n x (tokens b), so that mixing is one large matmul instead of many tiny ones.
    """
    rank, a, b = blocks.shape
    n = x.shape[1]
    mixed = torch.matmul(rule.encode_input.mT, x.transpose(0, 1).reshape(n, -1)).reshape(rank, -1, b)
    products = torch.bmm(mixed, blocks.mT)
    y = torch.matmul(rule.decode, products.reshape(rank, -1)).reshape(n, -1, a).transpose(0, 1)
    return y if bias is None else y + bias.to(y.dtype).reshape(n, a)
