"""Weights of several parts that share one rule: the gates of a recurrent layer, the projections of attention, the
groups and the kernel of a convolution.

Each part is a weight of its own, `W[g] = sum_k kron(rule[k], components[k, g])`; the rule never mixes parts.
"""

from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.cache import Cache
from nplex.ops.dense import expand
from nplex.ops.product import product


def expand_parts(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n parts a b *kernel"],
    rows: int,
    columns: int,
) -> Float[Tensor, "d_out {columns} *kernel"]:
    """`W[(g, i, a), (j, b), ...] = sum_k rule[k, i, j] components[k, g, a, b, ...]`, each part cropped.

    Args:
        rule: the table `[k, i, j]`, or its factors.
        components: a block for each part; what follows b, as a convolution's kernel, stays where it is.
        rows: outputs of a part, at most n a.
        columns: inputs of a part, at most n b.
    """
    n, parts, a, b = components.shape[:4]
    kernel = components.shape[4:]
    weight = expand(rule, components.reshape(n, parts * a, -1)).reshape(n, parts, a, n * b, *kernel)
    weight = weight.transpose(0, 1).reshape(parts, n * a, n * b, *kernel)
    return weight[:, :rows, :columns].reshape(parts * rows, columns, *kernel)


def product_parts(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n parts a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    *,
    rows: int,
    method: str = "auto",
    cache: Cache | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """`y = x W^T + bias` with `W = expand_parts(rule, components, rows, d_in)`, by the method named or planned.

    All parts are one product: x is mixed once for all of them.
    """
    n, parts, a, _ = components.shape
    y = product(x, rule, components.flatten(1, 2), features=(x.shape[-1], n * parts * a), method=method, cache=cache)
    y = y.reshape(*x.shape[:-1], n, parts, a).transpose(-3, -2).reshape(*x.shape[:-1], parts, n * a)
    y = y[..., :rows].reshape(*x.shape[:-1], parts * rows)
    return y if bias is None else y + bias.to(y.dtype)


def transposed(rule: Float[Tensor, "n n n"] | BilinearAlgorithm) -> Tensor | BilinearAlgorithm:
    """`rule[k, j, i]`: the rule with inputs and outputs exchanged, of the transposed weight."""
    if isinstance(rule, Tensor):
        return rule.transpose(1, 2)
    return BilinearAlgorithm(rule.encode_component, rule.decode, rule.encode_input)
