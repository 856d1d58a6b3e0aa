"""The door to the product: check, plan, call."""

import math
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.cache import kept_for
from nplex.ops.method import Method
from nplex.ops.methods import METHODS
from nplex.ops.plan import chooser, is_captured
from nplex.ops.tracing import plain_sizes

best = chooser(METHODS)


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    *,
    features: tuple[int, int] | None = None,
    method: str = "auto",
) -> Float[Tensor, "*batch d_out"]:
    """`y = x W^T + bias` with `W = sum_k kron(rule[k], components[k])`, by the method named or planned.

    Args:
        x: the input; any batch dimensions, none and empty ones too.
        rule: the table `[k, i, j]`, or its factors.
        components: one block a component.
        bias: added to the output.
        features: (d_in, d_out) where n does not divide them: x is padded with zeros to n * b, the output cropped.
        method: "auto", or one of reference, dense, components_first, rule_first, bilinear.

    Raises:
        TypeError: x or components are no tensors, or rule is neither a table nor factors.
        ValueError: sizes that do not fit together, an unknown method, or "bilinear" for a rule without factors.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4).

    Examples:
        >>> import torch
        >>> from nplex.algebra import quaternion
        >>> x, components = torch.ones(2, 8), torch.ones(4, 3, 2)
        >>> product(x, quaternion.table.float(), components).shape
        torch.Size([2, 12])
    """
    _check_types(x, rule, components)
    n, a, b = components.shape
    return run(x, rule, components, bias, features or (n * b, n * a), method, components)


def run(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None,
    features: tuple[int, int],
    method: str,
    owner: Tensor,
    part: tuple[int, int] | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """As product, with components that are a part of a parameter, their owner, with which nplex.nn.cached keeps."""
    cache = kept_for(owner, rule, x)
    call = chosen = None
    if cache is not None:
        sizes = x.shape, features, None if bias is None else bias.shape
        call = (part, method, sizes, x.dtype, x.requires_grad, is_captured(x))
        chosen = cache.methods.get(call)
    if x.is_nested:  # torch's own linear knows both layouts
        weight = METHODS["dense"].prepare(rule, components)[0]
        return F.linear(x, weight[: features[1], : features[0]], bias)
    n, a, b = components.shape
    d_in, d_out = features
    if chosen is None:
        chosen = plain_sizes(_choose)(x, rule, components, bias, features, method, owner, cache is not None)
        if cache is not None:
            cache.methods[call] = chosen
    if d_in < n * b:
        x = F.pad(x, (0, n * b - d_in))
    if bias is not None and d_out < n * a:
        bias = F.pad(bias, (0, n * a - d_out))
    taken = METHODS[chosen]
    prepared = () if cache is None else cache.get((chosen, part), lambda: taken.prepare(rule, components))
    y = taken.product(x, rule, components, bias, prepared)
    return (y if d_out == n * a else y[..., :d_out]).contiguous()


def _choose(
    x: Tensor, rule: Tensor | BilinearAlgorithm, components: Tensor, bias: Tensor | None, features: tuple[int, int],
    method: str, owner: Tensor, prepared: bool,
) -> str:  # fmt: skip
    """The method that is named, or the best one, after all sizes were checked."""
    _check(x, rule, components, bias, features)
    check_method(method, factors=not isinstance(rule, Tensor))
    if method != "auto":
        return method
    n, a, b = components.shape
    return best(math.prod(x.shape[:-1]), (n, a, b, 1), rule, (owner, x), prepared)


def check_method(method: str, *, factors: bool, methods: Mapping[str, Method] = METHODS, of: str = "") -> None:
    """Refuses a method that does not exist or that the rule does not allow.

    Args:
        method: the name of one, or "auto".
        factors: whether the rule is held as factors.
        methods: those there are.
        of: what has these methods, for the message.

    Raises:
        ValueError: says which methods there are, or how to get factors.
    """
    if method == "auto":
        return
    if method not in methods:
        raise ValueError(f"method{of} must be one of {', '.join(('auto', *methods))}; got {method!r}")
    if methods[method].needs_factors and not factors:
        raise ValueError(
            f"method {method!r} needs a rule held as factors, got a full table; give the rule a rank, "
            "LearnedRule(n, rank=R), or take another method"
        )


def _check_types(x: Tensor, rule: Tensor | BilinearAlgorithm, components: Tensor) -> None:
    if not isinstance(rule, (Tensor, BilinearAlgorithm)):
        raise TypeError(
            f"rule must be a table or factors, got {type(rule).__name__}; of a module rule(), of an algebra "
            f"algebra.table.float()"
        )
    if not isinstance(x, Tensor) or not isinstance(components, Tensor):
        raise TypeError(f"x and components must be tensors, got {type(x).__name__} and {type(components).__name__}")
    if components.ndim != 3:
        raise ValueError(f"components must have 3 dimensions, n x a x b, got shape {tuple(components.shape)}")


def _check(
    x: Tensor,
    rule: Tensor | BilinearAlgorithm,
    components: Tensor,
    bias: Tensor | None,
    features: tuple[int, int],
) -> None:
    if isinstance(rule, BilinearAlgorithm) and len({factor.shape for factor in rule}) > 1:
        shapes = ", ".join(str(tuple(factor.shape)) for factor in rule)
        raise ValueError(f"the three factors must have one shape, n x R, got {shapes}")
    n, a, b = components.shape
    size = tuple(rule.shape) if isinstance(rule, Tensor) else tuple(factor.shape[0] for factor in rule)
    if size != (n, n, n):
        raise ValueError(f"the rule must be {n} x {n} x {n} for {n} components, got {' x '.join(map(str, size))}")
    if not n * (b - 1) < features[0] <= n * b or not n * (a - 1) < features[1] <= n * a:
        raise ValueError(
            f"features {features} do not fit {n} components of {a} x {b}: expected at most ({n * b}, {n * a})"
        )
    if x.ndim == 0 or x.shape[-1] != features[0]:
        raise ValueError(f"x must have {features[0]} numbers in its last dimension, got shape {tuple(x.shape)}")
    if bias is not None and tuple(bias.shape) != (features[1],):
        raise ValueError(f"bias must have shape ({features[1]},), got {tuple(bias.shape)}")
