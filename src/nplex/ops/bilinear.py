"""The bilinear method: mix the inputs to R blocks, R independent block products, mix to n outputs.

The only method that saves arithmetic: R / n^2 of the dense layer's, for a rule of rank R.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
) -> Float[Tensor, "*batch n*a"]:
    """`y[i] = sum_r decode[i, r] (sum_k encode_component[k, r] components[k]) (sum_j encode_input[j, r] x[j])`."""
    n, a, b = components.shape
    rank = rule.rank
    blocks = torch.matmul(rule.encode_component.mT, components.reshape(n, a * b)).reshape(rank, a, b)
    inputs = x.reshape(-1, n, b).transpose(0, 1)  # copied once: mixing is then one large matmul
    mixed = torch.matmul(rule.encode_input.mT, inputs.reshape(n, -1)).reshape(rank, -1, b)
    products = torch.bmm(mixed, blocks.mT)
    outputs = torch.matmul(rule.decode, products.reshape(rank, -1))
    y = outputs.reshape(n, -1, a).transpose(0, 1).reshape(*x.shape[:-1], n * a)
    return y if bias is None else y + bias.to(y.dtype)
