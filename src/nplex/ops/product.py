"""The door to the product: check, plan, call."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops import dense, factored, reference, tiles
from nplex.ops.cache import Cache, leaves
from nplex.ops.eager import is_eager
from nplex.ops.machine import current
from nplex.ops.plan import plan

# A compiled or exported graph serves every batch size, so its method is planned once, for this many tokens.
TOKENS_WHEN_COMPILING = 512

PRODUCTS: dict[str, Callable[..., Tensor]] = {
    "reference": reference.product,
    "dense": dense.product,
    "components_first": factored.components_first,
    "rule_first": factored.rule_first,
    "bilinear": tiles.product,
}
METHODS = ("auto", *PRODUCTS)


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    *,
    features: tuple[int, int] | None = None,
    method: str = "auto",
    cache: Cache | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """`y = x W^T + bias` with `W = sum_k kron(rule[k], components[k])`, by the method named or planned.

    Args:
        x: the input; any batch dimensions, none and empty ones too.
        rule: the table `[k, i, j]`, or its factors.
        components: one block a component.
        bias: added to the output.
        features: (d_in, d_out) where n does not divide them: x is padded with zeros to n * b, the output cropped.
        method: "auto", or one of reference, dense, components_first, rule_first, bilinear.
        cache: where what the method makes of rule and components is kept from call to call; see nplex.nn.cached.

    Raises:
        TypeError: x or components are no tensors, or rule is neither a table nor factors.
        ValueError: sizes that do not fit together, an unknown method, or "bilinear" for a rule without factors.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4).

    Examples:
        >>> from nplex.algebra import quaternion
        >>> x, components = torch.ones(2, 8), torch.ones(4, 3, 2)
        >>> product(x, quaternion.table.float(), components).shape
        torch.Size([2, 12])
    """
    _check_types(x, rule, components)
    if cache is not None and not (is_eager(x, components, *leaves(rule)) and cache.renew(rule, components)):
        cache = None
    n, a, b = components.shape
    d_in, d_out = features or (n * b, n * a)
    call = (method, x.shape, x.dtype, x.requires_grad, features, None if bias is None else bias.shape)
    chosen = None if cache is None else cache.methods.get(call)
    if chosen is None:
        _check(x, rule, components, bias, (d_in, d_out))
        check_method(method, factors=not isinstance(rule, Tensor))
        chosen = method
        if method == "auto":
            chosen = _planned(x, rule, components, (d_in, d_out), prepared=cache is not None)
        if cache is not None:
            cache.methods[call] = chosen
    if d_in < n * b:
        x = F.pad(x, (0, n * b - d_in))
    if bias is not None and d_out < n * a:
        bias = F.pad(bias, (0, n * a - d_out))
    y = PRODUCTS[chosen](x, rule, components, bias, () if cache is None else cache.get(chosen, rule, components))
    return y if d_out == n * a else y[..., :d_out]


def check_method(method: str, *, factors: bool) -> None:
    """Refuses a method that does not exist or that the rule does not allow.

    Args:
        method: the name of one, or "auto".
        factors: whether the rule is held as factors.

    Raises:
        ValueError: says which methods there are, or how to get factors.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if method == "bilinear" and not factors:
        raise ValueError(
            "method 'bilinear' needs a rule held as factors, got a full table; give the rule a rank, "
            "LearnedRule(n, rank=R), or take another method"
        )


def _planned(
    x: Tensor, rule: Tensor | BilinearAlgorithm, components: Tensor, features: tuple[int, int], prepared: bool
) -> str:
    """The method that the plan takes for these sizes; with the gradients where there will be some."""
    tokens = TOKENS_WHEN_COMPILING if torch.compiler.is_compiling() else math.prod(x.shape[:-1])
    rank, n = (None, rule.shape[0]) if isinstance(rule, Tensor) else (rule.rank, rule.n)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (x, components, *leaves(rule)))
    # parameters have the same sizes at each call, other tensors' may be symbols
    taken = _taken_once if isinstance(components, torch.nn.Parameter) else _taken
    return taken(features, (tokens, n, rank, x.element_size()), (training, prepared), x.device.type)


def _taken(
    features: tuple[int, int], sizes: tuple[int, int, int | None, int], how: tuple[bool, bool], device: str
) -> str:
    """The method of the plan for numbers alone."""
    (tokens, n, rank, element_size), (training, prepared) = sizes, how
    made = plan(
        *features, tokens=tokens, n=n, rank=rank, element_size=element_size, training=training, prepared=prepared,
        machine=current(device),
    )  # fmt: skip
    return made.method


def _taken_once(
    features: tuple[int, int], sizes: tuple[int, int, int | None, int], how: tuple[bool, bool], device: str
) -> str:
    """As _taken; torch.compile takes the answer as a constant, where to trace it takes half a second a layer."""
    return _taken(features, sizes, how, device)


# torch.compiler.assume_constant_result sets this too, but imports all of the compiler
setattr(_taken_once, "_dynamo_marked_constant", True)  # noqa: B010


def _check_types(x: Tensor, rule: Tensor | BilinearAlgorithm, components: Tensor) -> None:
    """Raises an error that names what is no tensor of the right kind."""
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
    """Raises a ValueError that names the size that does not fit."""
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
