"""Convolutions: on the dense weight, or by a bilinear rule: mix the channels, R grouped convolutions, mix.

`convolve(x, weight, groups)` is torch's convolution with its stride, padding and dilation; a layer brings it.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.parts import expand_parts

METHODS = ("auto", "dense", "bilinear")
# What bilinear takes of the time of a dense convolution, as measured on one core (docs/performance.md), is about
# R / n^2 (1 + SMALL / channels of a block) + MIXING (1 + R / n) / (channels places); it is taken below WORTH_IT.
SMALL, MIXING, WORTH_IT = 16, 30, 0.7
Convolve = Callable[[Tensor, Tensor, int], Tensor]


def convolution(
    x: Float[Tensor, "batch c_in *space"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n groups a b *kernel"],
    channels: tuple[int, int],
    convolve: Convolve,
    method: str = "auto",
) -> Float[Tensor, "batch c_out *places"]:
    """The convolution with `W[g] = sum_k kron(rule[k], components[k, g])` at each place of the kernel.

    Args:
        x: the input, with a batch dimension.
        rule: the table `[k, i, j]`, or its factors.
        components: a block for each group and place of the kernel.
        channels: inputs and outputs of a group.
        convolve: torch's convolution.
        method: "dense", "bilinear", or "auto", which takes bilinear where it saves enough arithmetic.

    Raises:
        ValueError: an unknown method, or "bilinear" for a rule without factors.
    """
    check_method(method, factors=not isinstance(rule, Tensor))
    method = planned(rule, components) if method == "auto" else method
    if isinstance(rule, Tensor) or method == "dense":
        inputs, outputs = channels
        return convolve(x, expand_parts(rule, components, outputs, inputs), components.shape[1])
    return _bilinear(x, rule, components, channels, convolve)


def check_method(method: str, *, factors: bool) -> None:
    """Refuses a method that a convolution has not, or that the rule does not allow.

    Raises:
        ValueError: says which there are, or how to get factors.
    """
    if method not in METHODS:
        raise ValueError(f"method of a convolution must be one of {', '.join(METHODS)}; got {method!r}")
    if method == "bilinear" and not factors:
        raise ValueError(
            "method 'bilinear' needs a rule held as factors, got a full table; give the rule a rank, "
            "LearnedRule(n, rank=R), or take another method"
        )


def _bilinear(
    x: Float[Tensor, "batch c_in *space"],
    rule: BilinearAlgorithm,
    components: Float[Tensor, "n groups a b *kernel"],
    channels: tuple[int, int],
    convolve: Convolve,
) -> Float[Tensor, "batch c_out *places"]:
    """`y[i] = sum_r decode[i, r] conv(sum_j encode_input[j, r] x[j], sum_k encode_component[k, r] components[k])`."""
    (n, groups, a, b), kernel = components.shape[:4], components.shape[4:]
    rank, (inputs, outputs) = rule.rank, channels
    parts = x.unflatten(1, (groups, inputs)).flatten(3)
    if inputs < n * b:
        parts = F.pad(parts, (0, 0, 0, n * b - inputs))
    mixed = torch.matmul(rule.encode_input.mT, parts.unflatten(2, (n, b)).flatten(3))
    blocks = torch.matmul(rule.encode_component.mT, components.reshape(n, -1)).reshape(rank, groups, a, b, *kernel)
    blocks = blocks.transpose(0, 1).reshape(groups * rank * a, b, *kernel)
    products = convolve(mixed.reshape(x.shape[0], groups * rank * b, *x.shape[2:]), blocks, groups * rank)
    y = torch.matmul(rule.decode, products.unflatten(1, (groups, rank, a)).flatten(3))
    places = products.shape[2:]
    return y.reshape(x.shape[0], groups, n * a, *places)[:, :, :outputs].flatten(1, 2)


def planned(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n groups a b *kernel"]
) -> str:
    """What "auto" takes: bilinear where its convolutions and mixing cost clearly less than one of all channels."""
    n, _, a, b, *kernel = components.shape
    if isinstance(rule, Tensor) or math.prod(kernel) == 1:  # torch's grouped convolution is slow with one place
        return "dense"
    blocks = rule.rank / n**2 * (1 + SMALL / min(a, b))
    mixing = MIXING * (1 + rule.rank / n) / (n * min(a, b) * math.prod(kernel))
    return "bilinear" if blocks + mixing < WORTH_IT else "dense"
