"""The product with components of low rank, `components[k] = left[k] right[k]`; neither they nor the weight exist."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm, as_table


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    left: Float[Tensor, "m a r"],
    right: Float[Tensor, "m r b"],
    bias: Float[Tensor, "d_out"] | None = None,
    *,
    out_features: int,
) -> Float[Tensor, "*batch {out_features}"]:
    """`y[i] = sum_k left[k] (sum_j rule[k, i, j] (right[k] x[j]))`, plus the bias.

    Three products: one matmul for all right[k] x[j], n x n mixes of those few numbers, one matmul with all left[k],
    which also sums over k. A token costs `n r (d_in + n^2 + d_out)` multiply-adds instead of `d_in d_out`.

    Args:
        x: the input; any batch dimensions, none and empty ones too.
        rule: the table `[k, i, j]`, or its factors.
        left: the tall factors of the components; of the first m, where the others are zero.
        right: their wide factors.
        bias: added to the output.
        out_features: outputs, at most n a.

    Raises:
        ValueError: x does not fit into n b inputs.
    """
    (m, a, r), b, table = left.shape, right.shape[2], as_table(rule)
    n = table.shape[1]
    if x.ndim == 0 or not n * (b - 1) < x.shape[-1] <= n * b:
        raise ValueError(f"x must have at most {n * b} numbers in its last dimension, got shape {tuple(x.shape)}")
    if x.shape[-1] < n * b:
        x = F.pad(x, (0, n * b - x.shape[-1]))
    rows = x.reshape(-1, n, b)
    tokens = rows.shape[0]
    t = F.linear(rows, right.reshape(m * r, b))  # token, j, (k, r)
    t = t.reshape(tokens, n, m, r).permute(2, 1, 0, 3).reshape(m, n, tokens * r)  # k, j, (token, r)
    u = torch.bmm(table[:m], t)  # k, i, (token, r)
    u = u.reshape(m, n, tokens, r).permute(2, 1, 0, 3).reshape(tokens, n, m * r)  # token, i, (k, r)
    y = F.linear(u, left.transpose(0, 1).reshape(a, m * r)).reshape(*x.shape[:-1], n * a)
    y = y if out_features == n * a else y[..., :out_features].contiguous()
    return y if bias is None else y + bias.to(y.dtype)
