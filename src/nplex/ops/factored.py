"""The factored methods: two contractions, the dense weight never exists.

They save no arithmetic, they save bytes: the components are read once and nothing of the weight's size is written.
That is what counts for one or a few tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table


def components_first(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
) -> Float[Tensor, "*batch n*a"]:
    """`t[k, j, a] = sum_b components[k, a, b] x[j, b]`, then `y[i, a] = sum_kj rule[k, i, j] t[k, j, a]`.

    The first is one batch of n matmuls, which reads the components as they lie; the middle has n times the size of
    the output.
    """
    n, a, b = components.shape
    middle = torch.matmul(x.reshape(-1, b), components.mT).reshape(n, -1, n, a)
    mixing = as_table(rule).transpose(0, 1).reshape(n, n * n)
    y = torch.matmul(mixing, middle.transpose(0, 1).reshape(-1, n * n, a)).reshape(*x.shape[:-1], n * a)
    return y if bias is None else y + bias.to(y.dtype)


def rule_first(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
) -> Float[Tensor, "*batch n*a"]:
    """`m[k, i, b] = sum_j rule[k, i, j] x[j, b]`, then `y[i, a] = sum_kb components[k, a, b] m[k, i, b]`.

    The middle has n times the size of the input, so this is the better order where d_out > d_in. The second sum
    runs over k one matmul at a time: in one matmul it would need a transposed copy of all components.
    """
    n, a, b = components.shape
    middle = torch.matmul(as_table(rule)[:, None], x.reshape(-1, n, b)).reshape(n, -1, b)
    y = torch.matmul(middle[0], components[0].mT)
    for k in range(1, n):
        y = torch.addmm(y, middle[k], components[k].mT)
    y = y.reshape(*x.shape[:-1], n * a)
    return y if bias is None else y + bias.to(y.dtype)
