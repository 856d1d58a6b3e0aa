"""The dense method: build the weight, then torch's own kernel."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops.eager import autocast_type, is_eager

# Blocks of the weight are built in a buffer of about so many bytes, which stays in cache, and put in their places.
TILE_BYTES = 2**21


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
    table = as_table(rule)
    if autocast_type(components) is not None or not is_eager(table, components):
        return formula(table, components)
    if torch.is_grad_enabled() and (table.requires_grad or components.requires_grad):
        return _Expand.apply(table, components)
    return _forward(table, components)


def formula(table: Float[Tensor, "n n n"], components: Float[Tensor, "n a b"]) -> Float[Tensor, "n*a n*b"]:
    """All blocks at once: differentiable any number of times, and easy to transform."""
    n, a, b = components.shape
    blocks = torch.matmul(table.reshape(n, n * n).mT, components.reshape(n, a * b))
    return blocks.reshape(n, n, a, b).transpose(1, 2).reshape(n * a, n * b)


class _Expand(torch.autograd.Function):
    """table, components -> weight."""

    @staticmethod
    def forward(ctx, table: Tensor, components: Tensor) -> Tensor:
        ctx.save_for_backward(table, components)
        return _forward(table, components)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        table, components = ctx.saved_tensors
        for_table, for_components = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            return _backward(table, components, grad, for_table, for_components)
        inputs = table.view_as(table), components.view_as(components)
        wanted = [t for t, want in zip(inputs, ctx.needs_input_grad, strict=True) if want]
        found = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=True))
        return next(found) if for_table else None, next(found) if for_components else None


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
        flat = grads.view(n * n, -1)
        if components_grad is not None:
            components_grad[:, start : start + rows] = torch.mm(weights, flat).view_as(part)
        if table_grad is not None:
            table_grad += torch.mm(part.flatten(1), flat.mT)
    return None if table_grad is None else table_grad.to(table.dtype).view_as(table), components_grad


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
    """Room for those rows."""
    n, _, b = components.shape
    return components.new_empty(n * n * _rows(components) * b)
