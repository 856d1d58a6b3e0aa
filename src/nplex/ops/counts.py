"""What each method does for one call of a layer: its matmuls, its passes over memory, its torch operations."""

import math
from typing import NamedTuple

import torch

from nplex.ops.dense import TILE_BYTES
from nplex.ops.machine import Machine, Work
from nplex.ops.packed import is_worth_it
from nplex.ops.tiles import KEPT_FROM, KEPT_SHARE, tile_tokens

CPU = torch.device("cpu")


class Request(NamedTuple):
    """What is asked, and the sizes of blocks."""

    in_features: int
    out_features: int
    tokens: int
    n: int
    rank: int | None
    element_size: int
    training: bool
    prepared: bool
    machine: Machine

    @property
    def a(self) -> int:
        """Rows of a block."""
        return math.ceil(self.out_features / self.n)

    @property
    def b(self) -> int:
        """Columns of a block."""
        return math.ceil(self.in_features / self.n)


def linear(r: Request, inputs: int, outputs: int) -> Work:
    """`x W^T + bias`; backward `dy W` and `dy^T x`."""
    work = Work(r.machine, r.element_size)
    work.matmul(r.tokens, inputs, outputs)
    if r.training:
        work.matmul(r.tokens, outputs, inputs)
        work.matmul(outputs, r.tokens, inputs)
        work.move(r.tokens * outputs, 0)
        work.call(12)
    return work


def dense(r: Request) -> Work:
    """Build W, n multiply-adds an entry, in rows that fit the cache, each then put in its place; then as torch's.

    Backward the gradient of W goes the same way back: read from its places, two matmuls.
    """
    n, a, b = r.n, r.a, r.b
    work = linear(r, n * b, n * a)
    if r.prepared:
        return work
    entries = n * n * a * b
    tiles = math.ceil(a / max(1, min(a, TILE_BYTES // (r.element_size * n * n * b))))
    build, back = Work(r.machine, r.element_size), Work(r.machine, r.element_size)
    build.mix(n * n, n, a * b / tiles)
    build.move(entries / tiles, entries / tiles)
    work.repeat(tiles, build)
    work.stream(entries)
    work.call(10)
    _table(work, r)
    if r.training:
        back.move(entries / tiles, entries / tiles)
        back.mix(n, n * n, a * b / tiles)
        back.mix(n, a * b / tiles, n * n)
        work.repeat(tiles, back)
        work.stream(entries)
        work.call(45)
    return work


def components_first(r: Request) -> Work:
    """n matmuls of n T inputs with the components, then one n x n^2 matmul mixes; backward each has its two."""
    work = Work(r.machine, r.element_size)
    tokens, n, a, b = r.tokens, r.n, r.a, r.b
    work.move(tokens * n * b, tokens * n * b)
    work.matmul(n * tokens, b, a, count=n)
    work.mix(n, n * n, tokens * a)
    work.move(2 * tokens * n * a, 2 * tokens * n * a)
    work.call(5)
    _table(work, r)
    if r.training:
        work.move(2 * tokens * n * a, tokens * n * a)
        work.mix(n * n, n, tokens * a)
        work.mix(n, tokens * a, n * n)
        work.matmul(n * tokens, a, b, count=n)
        work.matmul(a, n * tokens, b, count=n)
        work.move(tokens * (n * n + n) * b, tokens * n * b)
        work.call(42)
    return work


def rule_first(r: Request) -> Work:
    """One n^2 x n matmul mixes, then n matmuls of n T inputs with the components, then the sum over k.

    Prepared, the last two are one matmul, of packed components where there are no gradients.
    """
    work = Work(r.machine, r.element_size)
    tokens, n, a, b = r.tokens, r.n, r.a, r.b
    work.move(tokens * n * b, tokens * n * b)
    work.mix(n * n, n, tokens * b)
    if r.prepared:
        packed = not r.training and is_worth_it(n * a * b, r.element_size)
        work.matmul(n * tokens, n * b, a, packed=packed)
        work.move(tokens * n * a, tokens * n * a)
    else:
        work.matmul(n * tokens, b, a, count=n)
        work.move(tokens * (n * n + 2 * n) * a, 2 * tokens * n * a)
        work.call(3)
    _table(work, r)
    if r.training:
        work.move(2 * tokens * n * a, tokens * n * a)
        work.matmul(n * tokens, a, b, count=n)
        work.matmul(a, n * tokens, b, count=n)
        work.mix(n, n * n, tokens * b)
        work.mix(n * n, tokens * b, n)
        work.move(tokens * n * b, tokens * n * b)
        work.call(36)
    return work


def _table(work: Work, r: Request) -> None:
    """The table of a rule held as factors: `n^2 R` products, then one matmul; backward twice that."""
    if r.rank is None or r.prepared:
        return
    for _ in range(3 if r.training else 1):
        work.move(0, r.n * r.n * r.rank)
        work.mix(r.n, r.rank, r.n * r.n)
        work.call(6 if r.training else 2)


def bilinear(r: Request, rank: int) -> Work:
    """R blocks from n components; for each tile of tokens mix to R, R block products, mix to n.

    Backward blocks and mixed inputs are made again; two block products a tile, and a matmul with few rows for each
    mix and each factor.
    """
    n, a, b = r.n, r.a, r.b
    work, tile = Work(r.machine, r.element_size), Work(r.machine, r.element_size)
    tiles = math.ceil(r.tokens / tile_tokens(r.tokens, rank, a, b, r.element_size, CPU))
    tokens = r.tokens / max(tiles, 1)
    if not r.prepared:
        work.mix(rank, n, a * b)
    tile.move(n * tokens * b, n * tokens * b)
    tile.mix(rank, n, tokens * b)
    tile.matmul(tokens, b, a, count=rank)
    tile.mix(n, rank, tokens * a)
    tile.move(n * tokens * a, n * tokens * a)
    tile.call(3)
    work.call(6 if r.prepared else 3)  # the others have less to call when prepared, this one has not
    if r.training:
        _bilinear_backward(r, rank, work, tile, tokens)
    work.repeat(tiles, tile)
    return work


def _bilinear_backward(r: Request, rank: int, work: Work, tile: Work, tokens: int | float) -> None:
    """The second part of bilinear."""
    n, a, b = r.n, r.a, r.b
    if not r.prepared:
        work.mix(rank, n, a * b)
        work.mix(n, a * b, rank)
        work.mix(n, rank, a * b)
    work.move(r.tokens * n * a, rank * a * b)
    work.stream((2 if r.prepared else 3) * rank * a * b)  # blocks, once more, and their gradients: all new memory
    work.call(75)
    tile.move(n * tokens * (a + 2 * b), n * tokens * (a + 2 * b))
    if b < KEPT_FROM and KEPT_SHARE * n * b < rank * a:  # at least a part of the block products is made again
        tile.matmul(tokens * (1 - KEPT_SHARE * n * b / (rank * a)), b, a, count=rank)
    tile.mix(n, tokens * a, rank)
    tile.mix(rank, n, tokens * a)
    tile.mix(rank, n, tokens * b)
    tile.matmul(a, tokens, b, count=rank)
    tile.matmul(tokens, a, b, count=rank)
    tile.mix(n, tokens * b, rank)
    tile.mix(n, rank, tokens * b)
    tile.call(12)
