"""The dense method: build the weight with one small matmul, then torch's own kernel."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm, as_table


def expand(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n a b"]
) -> Float[Tensor, "n*a n*b"]:
    """`W[(i, a), (j, b)] = sum_k rule[k, i, j] components[k, a, b]`: the dense weight.

    One matmul over k gives the blocks `[i, j, a, b]`, one pass puts them in their places.
    """
    n, a, b = components.shape
    blocks = torch.matmul(as_table(rule).reshape(n, n * n).mT, components.reshape(n, a * b))
    return blocks.reshape(n, n, a, b).transpose(1, 2).reshape(n * a, n * b)


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
) -> Float[Tensor, "*batch n*a"]:
    """`y = linear(x, expand(rule, components), bias)`: dense arithmetic, best where the rule has full rank."""
    return F.linear(x, expand(rule, components), bias)
