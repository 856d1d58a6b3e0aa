"""Weights of several groups that share one rule: the gates of a recurrent layer, the projections of attention, the
groups and the kernel of a convolution.

Each group has a weight of its own, `W[g] = sum_k kron(rule[k], components[k, g])`; the rule never mixes groups.
"""

from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.cache import kept_for
from nplex.ops.dense import expand
from nplex.ops.dispatch import run


def expand_grouped(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n groups a b *kernel"],
    rows: int,
    columns: int,
    *,
    keep: bool = False,
) -> Float[Tensor, "d_out {columns} *kernel"]:
    """`W[(g, i, a), (j, b), ...] = sum_k rule[k, i, j] components[k, g, a, b, ...]`, each group cropped.

    Args:
        rule: the table `[k, i, j]`, or its factors.
        components: a block for each group; what follows b, as a convolution's kernel, stays where it is.
        rows: outputs of a group, at most n a.
        columns: inputs of a group, at most n b.
        keep: whether nplex.nn.cached keeps it for the next call; only for a weight that nobody else gets to change.
    """
    cache = kept_for(components, rule) if keep else None
    if cache is not None:
        key = ("grouped", rows, columns)
        return cache.get(key, lambda: (expand_grouped(rule, components, rows, columns),))[0]
    n, groups, a, b = components.shape[:4]
    kernel = components.shape[4:]
    weight = expand(rule, components.reshape(n, groups * a, -1)).reshape(n, groups, a, n * b, *kernel)
    weight = weight.transpose(0, 1).reshape(groups, n * a, n * b, *kernel)
    return weight[:, :rows, :columns].reshape(groups * rows, columns, *kernel).contiguous()


def product_grouped(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n all_groups a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    *,
    rows: int,
    method: str = "auto",
    groups: tuple[int, int] | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """`y = x W^T + bias` with `W = expand_grouped(rule, components, rows, d_in)`, by the method named or planned.

    All groups are one product: x is mixed once for all of them. Of `groups=(first, stop)` only those from first to
    before stop are computed.
    """
    some = components if groups is None else components[:, groups[0] : groups[1]]
    n, count, a, _ = some.shape
    features = x.shape[-1], n * count * a
    y = run(x, rule, some.flatten(1, 2), None, features, method, components, groups)
    y = y.reshape(*x.shape[:-1], n, count, a).transpose(-3, -2).reshape(*x.shape[:-1], count, n * a)
    y = y[..., :rows].reshape(*x.shape[:-1], count * rows).contiguous()
    return y if bias is None else y + bias.to(y.dtype)


def transposed(rule: Float[Tensor, "n n n"] | BilinearAlgorithm) -> Tensor | BilinearAlgorithm:
    """`rule[k, j, i]`: the rule with inputs and outputs exchanged, of the transposed weight."""
    if isinstance(rule, Tensor):
        return rule.transpose(1, 2)
    return BilinearAlgorithm(rule.encode_component, rule.decode, rule.encode_input)
