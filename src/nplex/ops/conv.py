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
from nplex.ops import dispatch
from nplex.ops.cache import kept_for
from nplex.ops.cost import Work
from nplex.ops.dense import add_build
from nplex.ops.grouped import expand_grouped
from nplex.ops.method import Method, Request
from nplex.ops.plan import chooser
from nplex.ops.tracing import plain_sizes

# A multiply-add of a grouped convolution with c channels a group takes 1 + SMALL / c times as long as one of a dense
# convolution, and ONE_PLACE times that with a kernel of one place; channels are mixed at 1 / MIXING of the speed of a
# layer's inputs. Least squares over the logarithms of bilinear / dense in the 60 times of `python benchmarks/conv.py`
# (one thread, AMD Zen 4; benchmarks/results/conv-1-thread.md): all choices but one of 1 % are then the faster ones.
SMALL, ONE_PLACE, MIXING = 24, 2, 5
# Grouped convolutions are slow on GPUs, nobody has measured how slow: this much slower, so that few are taken.
ON_ACCELERATORS = 8
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
        method: "dense", "bilinear", or "auto", which takes the plan's.

    Raises:
        ValueError: an unknown method, or "bilinear" for a rule without factors.
    """
    check_method(method, factors=not isinstance(rule, Tensor))
    cache = kept_for(components, rule, x)
    if method == "auto":
        method = plain_sizes(planned)(x, rule, components, cache is not None)
    taken = METHODS[method]
    prepared = (
        () if cache is None else cache.get((method, channels), lambda: taken.prepare(rule, components, channels))
    )
    y = taken.product(x, rule, components, channels, convolve, prepared)
    return y.contiguous(memory_format=_memory_format(x))


def _memory_format(x: Float[Tensor, "batch c_in *space"]) -> torch.memory_format:
    """Of the output, as torch's convolution chooses it: channels last where the input's are."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = x.ndim in formats and x.stride(1) < x.stride(-1)
    return formats[x.ndim] if last else torch.contiguous_format


def check_method(method: str, *, factors: bool) -> None:
    """Refuses a method that a convolution has not, or that the rule does not allow.

    Raises:
        ValueError: says which there are, or how to get factors.
    """
    dispatch.check_method(method, factors=factors, methods=METHODS, of=" of a convolution")


def planned(
    x: Float[Tensor, "batch c_in *space"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n groups a b *kernel"],
    prepared: bool = False,
) -> str:
    """What "auto" takes: the plan's method for the sizes of one group, with an output place for each of the input."""
    n, _, a, b, *kernel = components.shape
    tokens = x.shape[0] * math.prod(x.shape[2:])
    return best(tokens, (n, a, b, math.prod(kernel)), rule, (components, x), prepared)


def _dense(
    x: Float[Tensor, "batch c_in *space"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n groups a b *kernel"],
    channels: tuple[int, int],
    convolve: Convolve,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "batch c_out *places"]:
    (weight,) = prepared or _prepare_dense(rule, components, channels)
    return convolve(x, weight, components.shape[1])


def _prepare_dense(rule: Tensor | BilinearAlgorithm, components: Tensor, channels: tuple[int, int]) -> tuple[Tensor]:
    inputs, outputs = channels
    return (expand_grouped(rule, components, outputs, inputs),)


def _dense_cost(r: Request) -> Work:
    """The weight, where it is not at hand, and the convolution; backward two more of the same size."""
    work = r.work(kernels=True)
    _add_convolution(work, r, r.n * r.a, r.n * r.b)
    if not r.prepared:
        add_build(work, r)
    return work


def _bilinear(
    x: Float[Tensor, "batch c_in *space"],
    rule: BilinearAlgorithm,
    components: Float[Tensor, "n groups a b *kernel"],
    channels: tuple[int, int],
    convolve: Convolve,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "batch c_out *places"]:
    """`y[i] = sum_r decode[i, r] conv(sum_j encode_input[j, r] x[j], sum_k encode_component[k, r] components[k])`."""
    (n, groups, a, b), rank, (inputs, outputs) = components.shape[:4], rule.rank, channels
    parts = x.unflatten(1, (groups, inputs)).flatten(3)
    if inputs < n * b:
        parts = F.pad(parts, (0, 0, 0, n * b - inputs))
    mixed = torch.matmul(rule.encode_input.transpose(-1, -2), parts.unflatten(2, (n, b)).flatten(3))
    (blocks,) = prepared or _prepare_bilinear(rule, components, channels)
    products = convolve(mixed.reshape(x.shape[0], groups * rank * b, *x.shape[2:]), blocks, groups * rank)
    y = torch.matmul(rule.decode, products.unflatten(1, (groups, rank, a)).flatten(3))
    places = products.shape[2:]
    return y.reshape(x.shape[0], groups, n * a, *places)[:, :, :outputs].flatten(1, 2)


def _prepare_bilinear(rule: BilinearAlgorithm, components: Tensor, channels: tuple[int, int]) -> tuple[Tensor]:
    (n, groups, a, b), kernel = components.shape[:4], components.shape[4:]
    blocks = torch.matmul(rule.encode_component.transpose(-1, -2), components.reshape(n, -1)).reshape(
        -1, groups, a, b, *kernel
    )
    return (blocks.transpose(0, 1).reshape(-1, b, *kernel),)


def _bilinear_cost(r: Request) -> Work:
    """The blocks; mix the channels to R, R convolutions, mix back; backward each has its two."""
    n, a, b, rank, tokens = r.n, r.a, r.b, r.rank or 0, r.tokens
    work, mixing = r.work(), r.work()
    slower = (1 + SMALL / min(a, b)) * (ONE_PLACE if r.kernel == 1 else 1)
    _add_convolution(work, r, a, b, groups=rank, slower=slower if r.device.type == "cpu" else ON_ACCELERATORS)
    if not r.prepared:
        work.mix(rank, n, a * b * r.kernel)
    mixing.mix(rank, n, tokens * b)
    mixing.mix(n, rank, tokens * a)
    if r.training:
        for to, size, back in ((n, tokens * b, rank), (rank, tokens * a, n)):
            mixing.mix(to, size, back)
            mixing.mix(size, to, back)
    work.repeat(1, mixing)
    work.seconds += (MIXING - 1) * mixing.seconds
    return work


def _add_convolution(work: Work, r: Request, a: int, b: int, groups: int = 1, slower: float = 1.0) -> None:
    flops, numbers = 2 * r.tokens * a * b * r.kernel, r.tokens * (a + b) + a * b * r.kernel
    for _ in range(3 if r.training else 1):
        work.add(groups * flops, groups * (numbers - r.tokens * a), groups * r.tokens * a)
        work.seconds += (slower - 1) * groups * flops / work.flops_per_second


METHODS = {
    "dense": Method("dense", _dense, _prepare_dense, _dense_cost),
    "bilinear": Method("bilinear", _bilinear, _prepare_bilinear, _bilinear_cost, needs_factors=True),
}
best = chooser(METHODS)
