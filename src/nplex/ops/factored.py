"""The factored methods: two contractions, the dense weight never exists.

They save no arithmetic, they save bytes: the components are read once and nothing of the weight's size is written.
That is what counts for one or a few tokens.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops.packed import linear, pack


def components_first(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`t[k, j, a] = sum_b components[k, a, b] x[j, b]`, then `y[i, a] = sum_kj rule[k, i, j] t[k, j, a]`.

    The first is one batch of n matmuls, which reads the components as they lie, the second one matmul; the middle
    has n times the size of the output.
    """
    n, a, b = components.shape
    inputs = x.reshape(-1, n, b).transpose(0, 1).reshape(-1, b)  # j, token
    middle = torch.bmm(inputs.expand(n, -1, -1), components.mT)  # k; j, token
    table = prepared[0] if prepared else as_table(rule)
    y = torch.matmul(table.transpose(0, 1).reshape(n, n * n), middle.reshape(n, n, -1).flatten(0, 1))
    return _outputs(y.reshape(n, -1, a), x, bias)


def rule_first(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`m[k, i, b] = sum_j rule[k, i, j] x[j, b]`, then `y[i, a] = sum_kb components[k, a, b] m[k, i, b]`.

    The second sum is one batch of n matmuls, which reads the components as they lie, and one sum over k. The middle
    has n times the size of the input, so this is the better order where d_out > d_in.
    """
    n, a, b = components.shape
    if prepared:
        mixing, stacked = prepared
        return _rule_first_prepared(x, mixing, stacked, bias)
    inputs = x.reshape(-1, n, b).transpose(0, 1).reshape(n, -1)
    middle = torch.matmul(as_table(rule).reshape(n * n, n), inputs).reshape(n, -1, b)  # k; i, token
    y = torch.bmm(middle, components.mT).sum(0)
    return _outputs(y.reshape(n, -1, a), x, bias)


def prepare_rule_first(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n a b"]
) -> tuple[Float[Tensor, "n*n n"], Float[Tensor, "a n*b"]]:
    """The rule as `[(i, k), j]` and the components side by side, `[a, (k, b)]`: both sums are then one matmul.

    Without gradients the components are packed for it.
    """
    n, a, b = components.shape
    mixing = as_table(rule).transpose(0, 1).reshape(n * n, n)
    return mixing, pack(components.transpose(0, 1).reshape(a, n * b), rows=n)


def _rule_first_prepared(
    x: Float[Tensor, "*batch d_in"],
    mixing: Float[Tensor, "pairs n"],
    stacked: Tensor,
    bias: Float[Tensor, "d_out"] | None,
) -> Float[Tensor, "*batch d_out"]:
    """`m[i, (k, b)] = sum_j mixing[(i, k), j] x[j, b]`, then `y[i, a] = sum_kb m[i, (k, b)] stacked[a, (k, b)]`.

    `stacked` may be packed, which no shape annotation can see through.
    """
    n, (a, d_in) = mixing.shape[1], stacked.shape
    if x.numel() == d_in:
        middle = torch.mm(mixing, x.reshape(n, -1))  # what matmul does for one token takes four times as long
    else:
        middle = torch.matmul(mixing, x.reshape(-1, n, d_in // n))
    y = linear(middle.reshape(-1, d_in), stacked).reshape(*x.shape[:-1], n * a)
    return _plus(y, bias)


def _outputs(
    y: Float[Tensor, "n tokens a"], x: Float[Tensor, "*batch d_in"], bias: Float[Tensor, "d_out"] | None
) -> Float[Tensor, "*batch d_out"]:
    """The blocks of a token side by side, with the batch dimensions of x, and the bias."""
    y = y.transpose(0, 1).reshape(*x.shape[:-1], y.shape[0] * y.shape[2])
    return _plus(y, bias)


def _plus(y: Float[Tensor, "*batch d_out"], bias: Float[Tensor, "d_out"] | None) -> Float[Tensor, "*batch d_out"]:
    """y + bias in the type of y; a cast to the same type would take as long as the sum of one token."""
    if bias is None:
        return y
    return y + (bias if bias.dtype == y.dtype else bias.to(y.dtype))
