"""The bilinear product in tiles of tokens that stay in cache, with its gradients written by hand.

Large fresh buffers cost more than the mixing itself, so nothing of the size of R / n times the activations is
written: each tile goes through mixing, block products and mixing in buffers that the next tile uses again. Kept for
backward are the input, and some block products while `decode` is learned; all else is made again. The method that
uses them is nplex.ops.bilinear.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops import fused
from nplex.ops.sums import add_matmul, add_products, products_summed
from nplex.ops.tracing import autocast_type, cast, is_batched

# On a CPU a tile has at least so many tokens, and so many that what it writes has at least so many bytes.
LEAST_TOKENS, LEAST_BYTES, WIDE = 64, 2**20, 128
# Elsewhere a tile has so many tokens: enough to fill a GPU, and what lies between input and output stays small.
ACCELERATOR_TOKENS = 2**13
# Block products are kept for the gradient of `decode` up to this multiple of the bytes of the input, which is kept
# too; the others are made again. More would take more memory than the smaller layer saves. But on a CPU all are kept
# from so many inputs of a block on, where making them again is dear.
KEPT_SHARE, KEPT_FROM = 1.5, 256


class _Sizes(NamedTuple):
    tokens: int
    n: int
    rank: int
    a: int
    b: int
    tile: int


def blocks(
    rule: BilinearAlgorithm, components: Float[Tensor, "n a b"], dtype: torch.dtype | None = None
) -> Float[Tensor, "R a b"]:
    """`blocks[r] = sum_k encode_component[k, r] components[k]`; where a type is given in it, without a graph."""
    n, a, b = components.shape
    if dtype is not None:
        return fused.mix(rule.encode_component.mT, components, components.new_empty(rule.rank, a, b, dtype=dtype))
    return torch.matmul(rule.encode_component.transpose(-1, -2), components.reshape(n, a * b)).reshape(-1, a, b)


def formula(
    x: Float[Tensor, "tokens n b"],
    rule: BilinearAlgorithm,
    blocks: Float[Tensor, "R a b"],
    bias: Float[Tensor, "d_out"] | None,
) -> Float[Tensor, "tokens n a"]:
    """`y[i] = sum_r decode[i, r] (blocks[r] sum_j encode_input[j, r] x[j])`, for all tokens at once.

    Differentiable any number of times, easy to transform and to compile; `forward` is the same, faster.
    x is copied into n x (tokens b), so that mixing is one large matmul instead of many tiny ones.
    """
    rank, a, b = blocks.shape
    n = x.shape[1]
    mixed = torch.matmul(rule.encode_input.transpose(-1, -2), x.transpose(0, 1).reshape(n, -1)).reshape(rank, -1, b)
    products = torch.bmm(mixed, blocks.transpose(-1, -2))
    y = torch.matmul(rule.decode, products.reshape(rank, -1)).reshape(n, -1, a).transpose(0, 1)
    return y if bias is None else y + bias.to(y.dtype).reshape(n, a)


def tile_tokens(tokens: int, rank: int, a: int, b: int, element_size: int, device: torch.device) -> int:
    """Tokens of a tile: on a CPU about `a b / (a + b)`, twice that for wide blocks; elsewhere ACCELERATOR_TOKENS.

    With `a b / (a + b)` tokens a tile reads as many bytes of blocks as of block inputs and outputs: with far fewer
    the blocks are read too often, with far more the tile leaves the cache, which matters little for wide blocks.
    """
    if device.type != "cpu":
        return max(1, min(tokens, ACCELERATOR_TOKENS))
    balanced = a * b // (a + b)
    balanced *= 2 if balanced >= WIDE else 1
    size = max(LEAST_TOKENS, balanced, LEAST_BYTES // (element_size * rank * (a + b)))
    return max(1, min(tokens, -(-size // 32) * 32))


class _Product(torch.autograd.Function):
    """x, the three factors, components, bias, blocks -> y."""

    @staticmethod
    def forward(
        ctx, x: Tensor, encode_component: Tensor, encode_input: Tensor, decode: Tensor, components: Tensor,
        bias: Tensor | None, prepared: Tensor | None,
    ) -> Tensor:  # fmt: skip
        rule, narrow = BilinearAlgorithm(encode_component, encode_input, decode), components
        quick = fused.suits(rule, components, x, bias, prepared)
        if (dtype := autocast_type(x)) is not None and not quick:  # here, so that no factor's gradient is narrow
            rule, narrow = BilinearAlgorithm(*(cast(factor, dtype) for factor in rule)), cast(components, dtype)
        made = blocks(rule, narrow, x.dtype if quick else None) if prepared is None else prepared
        y, products = forward(x, rule, made, bias, ctx.needs_input_grad[3], quick)
        ctx.save_for_backward(x, encode_component, encode_input, decode, components, prepared, *products)
        return y

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, encode_component, encode_input, decode, components, prepared, *products = ctx.saved_tensors
        rule = BilinearAlgorithm(encode_component, encode_input, decode)
        wanted = ctx.needs_input_grad
        bias_grad = grad.sum(0).reshape(-1) if wanted[5] else None
        if torch.is_grad_enabled() or is_batched(grad):
            *most, blocks_grad = _differentiable(x, rule, components, prepared, grad, (*wanted[:5], wanted[6]))
            return *most, bias_grad, blocks_grad
        quick = fused.suits(rule, components, x, grad, prepared)
        if not quick:
            rule, components = BilinearAlgorithm(*(f.to(x.dtype) for f in rule)), components.to(x.dtype)
        made = blocks(rule, components, x.dtype if quick else None) if prepared is None else prepared
        needs_blocks = wanted[6] if prepared is not None else wanted[1] or wanted[4]
        x_grad, input_grad, decode_grad, blocks_grad = _backward(
            grad, x, rule, made, products, (wanted[0], wanted[2], wanted[3], needs_blocks), quick
        )
        if prepared is not None:
            return x_grad, None, input_grad, decode_grad, None, bias_grad, blocks_grad
        component_grad, components_grad = _through_blocks(blocks_grad, rule, components, wanted[1], wanted[4], quick)
        return x_grad, component_grad, input_grad, decode_grad, components_grad, bias_grad, None


forward_with_gradients = _Product.apply


def forward(
    x: Float[Tensor, "tokens n b"],
    rule: BilinearAlgorithm,
    blocks: Float[Tensor, "R a b"],
    bias: Float[Tensor, "d_out"] | None,
    keep: bool = False,
    quick: bool = False,
) -> tuple[Float[Tensor, "tokens n a"], list[Tensor]]:
    """y, and the block products of the first tiles if some are to be kept; `quick` by nplex.ops.fused.

    Tile by tile: one large tensor would be given back to the system at each step, and new pages cost more than the
    arithmetic.
    """
    s = _sizes(x, blocks)
    y = x.new_empty(s.tokens, s.n, s.a)
    kept, most, on_cpu = [], KEPT_SHARE * s.tokens * s.n * s.b / (s.rank * s.a), x.device.type == "cpu"
    if on_cpu and s.b >= KEPT_FROM:
        most = s.tokens
    elif not on_cpu:
        most -= s.tile - 1  # large tiles: none that is only begun
    own = 0 if quick else s.n * s.tile
    inputs, outputs = x.new_empty(own * s.b), x.new_empty(own * s.a)
    mixed, products = x.new_empty(s.rank * s.tile * s.b), x.new_empty(s.rank * s.tile * s.a)
    encode, weights = rule.encode_input.mT, blocks.mT
    for start in range(0, s.tokens, s.tile):
        stop = min(start + s.tile, s.tokens)
        z = _mix(encode, _gather(x[start:stop], inputs, quick), mixed, quick)
        buffer = torch.empty_like(products) if keep and start < most else products
        u = torch.bmm(z, weights, out=_view(buffer, s.rank, stop - start, s.a))
        if buffer is not products:
            kept.append(buffer)
        if quick:
            fused.mix(rule.decode, u, y[start:stop].transpose(0, 1), bias)
            continue
        part = _mix(rule.decode, u, outputs).transpose(0, 1)
        if bias is None:
            y[start:stop] = part
        else:
            torch.add(part, bias.reshape(s.n, s.a), out=y[start:stop])
    return y, kept


def _backward(
    grad: Float[Tensor, "tokens n a"],
    x: Float[Tensor, "tokens n b"],
    rule: BilinearAlgorithm,
    blocks: Float[Tensor, "R a b"],
    products: list[Tensor],
    wanted: tuple[bool, bool, bool, bool],
    quick: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    s, (for_x, for_encode, for_decode, for_blocks) = _sizes(x, blocks), wanted
    x_grad = torch.empty_like(x, memory_format=torch.contiguous_format) if for_x else None
    encode_grad = _zeros(rule.encode_input) if for_encode else None
    decode_grad = _zeros(rule.decode) if for_decode else None
    alone = 0 < s.tokens <= s.tile
    blocks_grad = _zeros(blocks) if for_blocks and not alone else None
    own = 0 if quick else s.n
    sizes = (own * s.b, s.rank * s.b, own * s.a, s.rank * s.a)
    inputs, mixed, outputs, product_grads = (x.new_empty(size * s.tile) for size in sizes)
    for start in range(0, s.tokens, s.tile):
        stop = min(start + s.tile, s.tokens)
        xs, dy = _gather(x[start:stop], inputs, quick), _gather(grad[start:stop], outputs, quick)
        z = _mix(rule.encode_input.mT, xs, mixed, quick)
        du = _view(product_grads, s.rank, stop - start, s.a)
        if decode_grad is not None:
            made = start // s.tile < len(products)
            u = _view(products[start // s.tile], *du.shape) if made else torch.empty_like(du) if quick else du
            if not made:
                torch.bmm(z, blocks.mT, out=u)
            if quick:
                decode_grad += fused.mix_back(dy, u, rule.decode, du)
            else:
                add_products(decode_grad, dy, u)
        if not quick or decode_grad is None:
            _mix(rule.decode.mT, dy, product_grads, quick)
        if for_blocks and alone:
            blocks_grad = torch.bmm(du.mT, z)
        elif blocks_grad is not None:
            add_matmul(blocks_grad, du.mT, z)
        if x_grad is None and encode_grad is None:
            continue
        dz = torch.bmm(du, blocks, out=_view(mixed, s.rank, stop - start, s.b))
        if quick:
            to = torch.empty_like(xs) if x_grad is None else x_grad[start:stop].transpose(0, 1)
            if encode_grad is None:
                fused.mix(rule.encode_input, dz, to)
            else:
                encode_grad += fused.mix_back(dz, xs, rule.encode_input.mT, to).mT
            continue
        if encode_grad is not None:
            add_products(encode_grad, xs, dz)
        if x_grad is not None:
            x_grad[start:stop] = _mix(rule.encode_input, dz, inputs).transpose(0, 1)
    if blocks_grad is not None and x.dtype != torch.float16:  # which may not hold them
        blocks_grad = blocks_grad.to(x.dtype)
    return x_grad, encode_grad, decode_grad, blocks_grad


def _through_blocks(
    blocks_grad: Float[Tensor, "R a b"] | None,
    rule: BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    for_encode: bool,
    for_components: bool,
    quick: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of encode_component and components, each one matmul."""
    if blocks_grad is None:
        return None, None
    if quick:
        to = torch.empty_like(components, memory_format=torch.contiguous_format)
        return fused.mix_back(blocks_grad, components, rule.encode_component.mT, to).mT, to
    encode, components = rule.encode_component.to(blocks_grad.dtype), components.to(blocks_grad.dtype)
    encode_grad = products_summed(components, blocks_grad) if for_encode else None
    components_grad = torch.mm(encode, blocks_grad.flatten(1)) if for_components else None
    return encode_grad, None if components_grad is None else components_grad.view_as(components)


def _differentiable(
    x: Tensor, rule: BilinearAlgorithm, components: Tensor, prepared: Tensor | None, grad: Tensor,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of x, the factors, components and prepared blocks, by operations that torch differentiates itself."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        x, *factors, components = (t.view_as(t) for t in (x, *rule, components))
        prepared = None if prepared is None else prepared.view_as(prepared)
        rule = BilinearAlgorithm(*factors)
        narrow = BilinearAlgorithm(*(factor.to(x.dtype) for factor in rule))
        made = blocks(narrow, components.to(x.dtype)) if prepared is None else prepared
        y = formula(x, narrow, made, None)
    inputs = (x, *rule, components, prepared)
    asked = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(y, asked, grad, create_graph=again, allow_unused=True))
    return [next(found) if want and t is not None else None for t, want in zip(inputs, wanted, strict=True)]


def _sizes(x: Float[Tensor, "tokens n b"], blocks: Float[Tensor, "R a b"]) -> _Sizes:
    (tokens, n, _), (rank, a, b) = x.shape, blocks.shape
    return _Sizes(tokens, n, rank, a, b, tile_tokens(tokens, rank, a, b, x.element_size(), x.device))


def _view(buffer: Tensor, rows: int, size: int, width: int) -> Float[Tensor, "rows size width"]:
    return buffer[: rows * size * width].view(rows, size, width)


def _gather(x: Float[Tensor, "size n c"], buffer: Tensor, quick: bool) -> Float[Tensor, "n size c"]:
    """Some tokens, the n parts of a token first; the kernels read them where they lie."""
    part = x.transpose(0, 1)
    return part if quick else _view(buffer, *part.shape).copy_(part)


def _mix(
    weights: Float[Tensor, "p q"], parts: Float[Tensor, "q size c"], buffer: Tensor, quick: bool = False
) -> Float[Tensor, "p size c"]:
    """`[p] = sum_q weights[p, q] parts[q]` into the buffer, as one matmul or by the kernels."""
    mixed = _view(buffer, weights.shape[0], *parts.shape[1:])
    if quick:
        return fused.mix(weights, parts, mixed)
    torch.mm(weights, parts.flatten(1), out=mixed.flatten(1))
    return mixed


def _zeros(like: Tensor) -> Tensor:
    """Where a gradient is summed over tiles: in float32 for half precision."""
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))
