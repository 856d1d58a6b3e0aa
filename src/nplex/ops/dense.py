"""The dense method: build the weight, then torch's own kernel."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops import fused
from nplex.ops.cost import Work
from nplex.ops.method import Method, Request
from nplex.ops.sums import products_summed
from nplex.ops.tracing import autocast_type, cast, full_precision, is_batched, is_eager

# Blocks of the weight are built in a buffer of about so many bytes, which stays in cache, and put in their places.
TILE_BYTES = 2**21
# Calls beside the matmuls, forward and backward (nplex.ops.cost says how they were fitted): of torch's linear, of
# building the weight, and of each step from factors to the table.
LINEAR_BACKWARD_CALLS = 12
BUILD_CALLS, BUILD_BACKWARD_CALLS = 10, 45
TABLE_CALLS, TABLE_TRAINING_CALLS = 2, 6


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`y = linear(x, expand(rule, components), bias)`: dense arithmetic, best where the rule has full rank.

    `prepared` holds the weight, where it is at hand.
    """
    return F.linear(x, prepared[0] if prepared else expand(rule, components), bias)


def expand(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n a b"]
) -> Float[Tensor, "n*a n*b"]:
    """`W[(i, a), (j, b)] = sum_k rule[k, i, j] components[k, a, b]`: the dense weight.

    One matmul over k gives the blocks `[i, j, a, b]`, one pass puts them in their places; in an ordinary call, some
    rows at a time.
    """
    with full_precision(components):  # else gradients of factors would be narrow
        table = fused.table(rule, components)
    if not is_eager(table, components):
        return formula(table, components)
    if torch.is_grad_enabled() and (table.requires_grad or components.requires_grad):
        return _Expand.apply(table, components)
    return _narrow(table, components)


def prepare(
    rule: Float[Tensor, "n n n"] | BilinearAlgorithm, components: Float[Tensor, "n a b"]
) -> tuple[Float[Tensor, "n*a n*b"]]:
    """The weight."""
    return (expand(rule, components),)


def formula(table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"]) -> Float[Tensor, "n*a n*b"]:
    """All blocks at once: differentiable any number of times, and easy to transform."""
    n, a, b = components.shape
    blocks = torch.matmul(table.reshape(n, n * n).transpose(-1, -2), components.reshape(n, a * b))
    return blocks.reshape(n, n, a, b).transpose(1, 2).reshape(n * a, n * b)


class _Expand(torch.autograd.Function):
    """table, components -> weight."""

    @staticmethod
    def forward(ctx, table: Tensor, components: Tensor) -> Tensor:
        ctx.save_for_backward(table, components)
        return _narrow(table, components)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, components = ctx.saved_tensors
        for_table, for_components = ctx.needs_input_grad
        if not torch.is_grad_enabled() and not is_batched(grad) and fused.suits(table, components, grad):
            return _fused_backward(table, components, grad, for_table)
        table, components = table.to(grad.dtype), components.to(grad.dtype)
        if not torch.is_grad_enabled() and not is_batched(grad):
            return _backward(table, components, grad, for_table, for_components)
        n, a, b = components.shape  # of second derivatives, and of several gradients at once
        grads = grad.reshape(n, a, n, b).transpose(1, 2).reshape(n * n, a * b)
        table_grad = (components.reshape(n, a * b) @ grads.mT).reshape(n, n, n) if for_table else None
        return table_grad, (table.reshape(n, n * n) @ grads).reshape(n, a, b) if for_components else None


def _narrow(table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"]) -> Float[Tensor, "n*a n*b"]:
    """The weight, in autocast's type where that is on."""
    dtype = autocast_type(components)
    if fused.suits(table, components):
        n, a, b = components.shape
        weight = components.new_empty(n * a, n * b, dtype=dtype)
        fused.mix(table.permute(1, 2, 0), components, _places(components, weight))
        return weight
    if dtype is not None:
        table, components = cast(table, dtype), cast(components, dtype)
    return _forward(table, components)


def _forward(table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"]) -> Float[Tensor, "n*a n*b"]:
    """The weight, some rows of every block at a time."""
    n, a, b = components.shape
    weight = components.new_empty(n * a, n * b)
    places, rows, buffer = _places(components, weight), _rows(components), _buffer(components)
    weights = table.reshape(n, n * n).mT
    for start in range(0, a, rows):
        part = components[:, start : start + rows]
        built = buffer[: n * n * part[0].numel()].view(n, n, -1, b)
        torch.mm(weights, part.flatten(1), out=built.view(n * n, -1))
        places[:, :, start : start + rows] = built
    return weight


def _backward(
    table: Float[Tensor, "n n n"],
    components: Float[Tensor, "n a b"],
    grad: Float[Tensor, "n*a n*b"],
    for_table: bool,
    for_components: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of table and components, each one matmul for some rows of every block."""
    n, a, b = components.shape
    places, rows, buffer = _places(components, grad), _rows(components), _buffer(components)
    exact = torch.promote_types(table.dtype, torch.float32)  # summed over the rows
    table_grad = table.new_zeros(n, n * n, dtype=exact) if for_table else None
    components_grad = torch.empty_like(components, memory_format=torch.contiguous_format) if for_components else None
    weights = table.reshape(n, n * n)
    for start in range(0, a, rows):
        part = components[:, start : start + rows]
        grads = buffer[: n * n * part[0].numel()].view(n, n, -1, b)
        grads.copy_(places[:, :, start : start + rows])
        grads = grads.flatten(0, 1)
        if components_grad is not None:
            components_grad[:, start : start + rows] = torch.mm(weights, grads.flatten(1)).view_as(part)
        if table_grad is not None:
            table_grad += products_summed(part, grads)
    return None if table_grad is None else table_grad.view_as(table), components_grad


def _fused_backward(
    table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"], grad: Float[Tensor, "n*a n*b"], for_table: bool
) -> tuple[Tensor | None, Tensor]:
    """The same in one pass over the gradient."""
    places = _places(components, grad)
    components_grad = torch.empty_like(components, memory_format=torch.contiguous_format)
    if for_table:
        table_grad = fused.mix_back(places, components, table.permute(1, 2, 0), components_grad)
        return table_grad.permute(2, 0, 1), components_grad
    return None, fused.mix(table, places, components_grad)


def _places(components: Float[Tensor, "n a b"], weight: Float[Tensor, "n*a n*b"]) -> Float[Tensor, "n n a b"]:
    """The blocks of a weight, where they lie."""
    n, a, b = components.shape
    return weight.unflatten(1, (n, b)).unflatten(0, (n, a)).transpose(1, 2)


def _rows(components: Float[Tensor, "n a b"]) -> int:
    """Rows of every block that fit into the buffer; all where the device has no such cache."""
    n, a, b = components.shape
    if components.device.type != "cpu":
        return a
    return max(1, min(a, TILE_BYTES // (components.element_size() * n * n * b)))


def _buffer(components: Float[Tensor, "n a b"]) -> Tensor:
    n, _, b = components.shape
    return components.new_empty(n * n * _rows(components) * b)


def linear_cost(r: Request, inputs: int, outputs: int) -> Work:
    """`x W^T + bias`; backward `dy W` and `dy^T x`."""
    work = r.work(kernels=True)
    work.matmul(r.tokens, inputs, outputs)
    if r.training:
        work.matmul(r.tokens, outputs, inputs)
        work.matmul(outputs, r.tokens, inputs)
        work.move(r.tokens * outputs, 0)
        work.call(LINEAR_BACKWARD_CALLS)
    return work


def cost(r: Request) -> Work:
    """The weight, where it is not at hand; then as torch's."""
    work = linear_cost(r, r.n * r.b, r.n * r.a)
    if not r.prepared:
        add_build(work, r)
    return work


def add_build(work: Work, r: Request) -> None:
    """The weight, n multiply-adds an entry, in rows that fit the cache, each then put in its place.

    Backward the gradient of W goes the same way back: read from its places, two matmuls.
    """
    n, a, b = r.n, r.a, r.b * r.kernel
    entries = n * n * a * b
    rows = a if r.device.type != "cpu" else max(1, min(a, TILE_BYTES // (r.element_size * n * n * b)))
    tiles = math.ceil(a / rows)
    build, back = r.work(kernels=True), r.work(kernels=True)
    build.mix(n * n, n, a * b / tiles)
    build.copy(entries / tiles)
    work.repeat(tiles, build)
    work.stream(entries)
    work.call(BUILD_CALLS)
    add_table(work, r)
    if r.training:
        back.copy(entries / tiles)
        back.mix(n, n * n, a * b / tiles)
        back.sums(n * n, a * b / tiles, n)
        back.start(int(back.fused))  # in the type of the table
        work.repeat(tiles, back)
        work.stream(entries)
        work.call(BUILD_BACKWARD_CALLS)


def add_table(work: Work, r: Request) -> None:
    """The table of a rule held as factors: `n^2 R` products, then one matmul; backward twice that."""
    if r.rank is None or r.prepared:
        return
    for _ in range(1 + r.training if work.fused else 1 + 2 * r.training):
        if not work.fused:
            work.move(0, r.n * r.n * r.rank)
        work.mix(r.n, r.rank, r.n * r.n)
        work.call(TABLE_TRAINING_CALLS if r.training else TABLE_CALLS)


METHOD = Method("dense", product, prepare, cost)
