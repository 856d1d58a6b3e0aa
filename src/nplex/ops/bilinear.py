"""The bilinear method: mix the inputs to R blocks, R independent block products, mix to n outputs.

The only method that saves arithmetic: R / n^2 of the dense layer's, for a rule of rank R.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops import fused, tiles, token_major
from nplex.ops.cost import Work
from nplex.ops.method import Method, Request
from nplex.ops.tracing import autocast_type, cast, is_eager

# Of one token, block products are matrix-vector products; from this size on, R calls cost less than what a batch of
# matmuls loses by packing the blocks.
LARGE_BLOCK = 2**16
# Calls beside the matmuls (nplex.ops.cost says how they were fitted): the others have less to call when prepared,
# this method has not.
FACTOR_KERNELS = 8  # of an accelerator, which add up what the matmuls of two factors' gradients gave
CALLS, PREPARED_CALLS, BACKWARD_CALLS, TILE_CALLS, TILE_BACKWARD_CALLS = 3, 6, 75, 3, 12


def product(
    x: Float[Tensor, "*batch d_in"],
    rule: BilinearAlgorithm,
    components: Float[Tensor, "n a b"],
    bias: Float[Tensor, "d_out"] | None = None,
    prepared: tuple[Tensor, ...] = (),
) -> Float[Tensor, "*batch n*a"]:
    """`y[i] = sum_r decode[i, r] (sum_k encode_component[k, r] components[k]) (sum_j encode_input[j, r] x[j])`.

    An ordinary call runs in tiles; torch.compile, torch.func and the like see a formula. `prepared` holds the
    blocks, the bracket with k, where they are at hand; gradients then go to them.
    """
    n, a, b = components.shape
    if (dtype := autocast_type(x)) is not None:
        x, bias, prepared = cast(x, dtype), cast(bias, dtype), tuple(cast(t, dtype) for t in prepared)
    rows = x.reshape(-1, n, b)
    inputs = (rows, *rule, components, bias, prepared[0] if prepared else None)
    eager = is_eager(*inputs)
    if eager and torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        y = tiles.forward_with_gradients(*inputs)
    elif token_major.suits(rows, rule):
        y = token_major.formula(rows, rule, components, bias, inputs[-1])
    else:
        quick = eager and fused.suits(rule, components, rows, bias, *prepared)
        if dtype is not None and not quick:
            components = cast(components, dtype)
            rule = BilinearAlgorithm(*(cast(factor, dtype) for factor in rule))
        made = prepared[0] if prepared else tiles.blocks(rule, components, x.dtype if quick else None)
        if quick or (eager and rows.shape[0] > tiles.LEAST_TOKENS):
            y, _ = tiles.forward(rows, rule, made, bias, quick=quick)
        elif eager and rows.shape[0] == 1 and a * b >= LARGE_BLOCK and x.dtype in (torch.float32, torch.float64):
            y = _one_token(rows[0], rule, made, bias)
        else:
            y = tiles.formula(rows, rule, made, bias)
    return y.reshape(*x.shape[:-1], n * a)


def prepare(rule: BilinearAlgorithm, components: Float[Tensor, "n a b"]) -> tuple[Float[Tensor, "R a b"]]:
    """The blocks."""
    return (tiles.blocks(rule, components),)


def _one_token(
    x: Float[Tensor, "n b"],
    rule: BilinearAlgorithm,
    blocks: Float[Tensor, "R a b"],
    bias: Float[Tensor, "d_out"] | None,
) -> Float[Tensor, "n a"]:
    """As `formula`, reading every block once at the speed of memory."""
    mixed = torch.mm(rule.encode_input.mT, x)
    products = x.new_empty(blocks.shape[:2])
    for block, z, u in zip(blocks, mixed, products, strict=True):
        torch.mv(block, z, out=u)
    y = torch.mm(rule.decode, products)
    return y if bias is None else y + bias.reshape(y.shape)


def cost(r: Request) -> Work:
    """R blocks from n components; for each tile of tokens mix to R, R block products, mix to n.

    Backward blocks and mixed inputs are made again; two block products a tile, and a matmul with few rows for each
    mix and each factor.
    """
    n, a, b, rank = r.n, r.a, r.b, r.rank or 0
    if r.compiled and max(n, rank) <= token_major.MOST_TERMS:
        return _merged_cost(r, rank)
    work, tile = r.work(kernels=True), r.work(kernels=True)
    count = math.ceil(r.tokens / tiles.tile_tokens(r.tokens, rank, a, b, r.element_size, r.device))
    tokens = r.tokens / max(count, 1)
    if not r.prepared:
        work.mix(rank, n, a * b)
    tile.copy(n * tokens * b)
    tile.mix(rank, n, tokens * b)
    tile.matmul(tokens, b, a, count=rank)
    tile.mix(n, rank, tokens * a)
    tile.copy(n * tokens * a)
    tile.call(TILE_CALLS)
    work.call(PREPARED_CALLS if r.prepared else CALLS)
    if r.training:
        _add_backward(r, rank, work, tile, tokens)
    work.repeat(count, tile)
    return work


def _add_backward(r: Request, rank: int, work: Work, tile: Work, tokens: int | float) -> None:
    n, a, b, on_gpu = r.n, r.a, r.b, r.device.type != "cpu"
    if not r.prepared:
        work.mix(rank, n, a * b)
        work.sums(rank, a * b, n)
        work.mix(n, rank, a * b)
    work.move(r.tokens * n * a, rank * a * b)
    work.stream((2 if r.prepared else 3) * rank * a * b)  # blocks, once more, and their gradients: all new memory
    work.call(BACKWARD_CALLS)
    tile.copy(n * tokens * (a + 2 * b))
    kept = tiles.KEPT_SHARE * n * b / (rank * a)
    if kept < 1 and (on_gpu or b < tiles.KEPT_FROM):  # at least a part of the block products is made again
        tile.matmul(tokens * (1 - kept), b, a, count=rank)
    if on_gpu and tokens < r.tokens:  # gradients of several tiles are added
        tile.move(3 * rank * a * b, 2 * rank * a * b)
    tile.start(FACTOR_KERNELS // 4 if tile.fused else FACTOR_KERNELS)
    tile.sums(n, tokens * a, rank)
    tile.mix(rank, n, tokens * a)
    tile.mix(rank, n, tokens * b)
    tile.matmul(a, tokens, b, count=rank)
    tile.matmul(tokens, a, b, count=rank)
    tile.sums(rank, tokens * b, n)
    tile.mix(n, rank, tokens * b)
    tile.call(TILE_BACKWARD_CALLS)


def _merged_cost(r: Request, rank: int) -> Work:
    """Of nplex.ops.token_major, where x, y and their gradients are at hand: sums merge with what is around them."""
    n, a, b, tokens, work = r.n, r.a, r.b, r.tokens, r.work()
    if not r.prepared:
        work.move(n * a * b, rank * a * b)
    work.move(0, rank * tokens * b)
    work.matmul(tokens, b, a, count=rank)
    work.move(rank * tokens * a, 0)
    if r.training:
        work.move(n * a * b + rank * a * b, n * a * b + rank * a * b)
        work.move(n * tokens * b, rank * tokens * (a + b))  # block inputs once more, and gradients of the products
        work.matmul(a, tokens, b, count=rank)
        work.matmul(tokens, a, b, count=rank)
        work.move(rank * tokens * b, 0)
        for size in (tokens * a, tokens * b, a * b):
            work.mix(n, size, rank)
        work.start(FACTOR_KERNELS)
    return work


METHOD = Method("bilinear", product, prepare, cost, needs_factors=True)
