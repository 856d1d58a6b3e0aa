"""Planning: sizes in, what each method would cost out. A plan can be made and printed without any layer.

Each method is written down once more as the list of its matmuls and passes over memory. `Work` adds up what they cost
and `Machine` holds the constants; both are in nplex.ops.machine.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from nplex.ops.dense import TILE_BYTES
from nplex.ops.machine import DEFAULT, Cost, Machine, Work, current
from nplex.ops.tiles import KEPT_FROM, tile_tokens

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """The method chosen for given sizes, with what each would have cost.

    Examples:
        >>> from nplex.ops.machine import DEFAULT
        >>> print(plan(512, 2048, tokens=1024, n=4, rank=7, machine=DEFAULT))
        512 -> 2048, n = 4, rank 7, 1024 tokens, 4 bytes a number, forward
          method               MFLOP  of dense    MByte     estimate
          torch's Linear      2147.5      1.00     14.7    25.486 ms
          dense               2155.9      1.00     28.3    25.992 ms
          components_first    2214.6      1.03    122.7    36.678 ms
          rule_first          2164.3      1.01    124.8    36.260 ms
          bilinear             979.9      0.46     85.7    13.201 ms  <- chosen
          for a machine by default; nplex measure measures this one
    """

    in_features: int
    out_features: int
    tokens: int
    n: int
    rank: int | None
    element_size: int
    training: bool
    prepared: bool
    machine: Machine
    linear: Cost
    costs: tuple[Cost, ...]

    @property
    def method(self) -> str:
        """The method with the lowest estimate."""
        best = self.costs[0]
        for cost in self.costs:  # not min(key=...): torch.compile cannot trace that
            if cost.seconds < best.seconds:
                best = cost
        return best.method

    def __str__(self) -> str:
        rank = "full rule" if self.rank is None else f"rank {self.rank}"
        tokens = f"{self.tokens} token{'s' * (self.tokens != 1)}"
        lines = [
            f"{self.in_features} -> {self.out_features}, n = {self.n}, {rank}, {tokens}, "
            f"{self.element_size} bytes a number, {'training step' if self.training else 'forward'}"
            f"{', prepared' * self.prepared}",
            f"  {'method':<16} {'MFLOP':>9} {'of dense':>9} {'MByte':>8} {'estimate':>12}",
        ]
        for cost in (self.linear, *self.costs):
            share = cost.flops / self.linear.flops if self.linear.flops else 1.0
            chosen = "  <- chosen" if cost.method == self.method else ""
            lines.append(
                f"  {cost.method:<16} {cost.flops / 1e6:>9.1f} {share:>9.2f} {cost.bytes / 1e6:>8.1f} "
                f"{cost.seconds * 1e3:>9.3f} ms{chosen}"
            )
        measured = "by default; nplex measure measures this one" if self.machine == DEFAULT else "as measured"
        lines.append(f"  for a machine {measured}")
        return "\n".join(lines)


def plan(  # noqa: PLR0913 - each is a size or a circumstance
    in_features: int,
    out_features: int,
    *,
    tokens: int,
    n: int,
    rank: int | None = None,
    element_size: int = 4,
    training: bool = False,
    prepared: bool = False,
    machine: Machine | None = None,
) -> Plan:
    """What each method costs for a layer in_features -> out_features, and which is taken.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        tokens: rows of the input, all batch dimensions multiplied; may be 0.
        n: the dimension of the algebra.
        rank: R of a rule held as factors; None for a full table, which rules the bilinear method out.
        element_size: bytes of a number: 4 for float32, 2 for bfloat16.
        training: whether the gradients are counted too, all of them.
        prepared: whether what a method makes of rule and components alone is at hand and costs nothing: the weight
            (dense), the blocks (bilinear), the table of a rule held as factors.
        machine: how fast it runs; None for the one measured, or the default.

    Raises:
        ValueError: a size is not positive; it is named.
    """
    machine = current() if machine is None else machine
    return _plan(_Request(in_features, out_features, tokens, n, rank, element_size, training, prepared, machine))


class _Request(NamedTuple):
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


@functools.lru_cache(maxsize=4096)
def _plan(r: _Request) -> Plan:
    """As plan, kept: a layer asks at every call."""
    sizes = {"in_features": r.in_features, "out_features": r.out_features, "n": r.n, "element_size": r.element_size}
    sizes |= {} if r.rank is None else {"rank": r.rank}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, got {size}")
    if r.tokens < 0:
        raise ValueError(f"tokens must be 0 or more, got {r.tokens}")
    for name in ("in_features", "out_features"):
        if r.n > sizes[name]:
            raise ValueError(f"n = {r.n} is larger than {name} = {sizes[name]}: take n of {sizes[name]} or less")
    costs = [
        _dense(r).cost("dense"),
        _components_first(r).cost("components_first"),
        _rule_first(r).cost("rule_first"),
    ]
    if r.rank is not None:
        costs.append(_bilinear(r, r.rank).cost("bilinear"))
    return Plan(*r, _linear(r, r.in_features, r.out_features).cost("torch's Linear"), tuple(costs))


def _linear(r: _Request, inputs: int, outputs: int) -> Work:
    """`x W^T + bias`; backward `dy W` and `dy^T x`."""
    work = Work(r.machine, r.element_size)
    work.matmul(r.tokens, inputs, outputs)
    if r.training:
        work.matmul(r.tokens, outputs, inputs)
        work.matmul(outputs, r.tokens, inputs)
        work.move(r.tokens * outputs, 0)
        work.call(12)
    return work


def _dense(r: _Request) -> Work:
    """Build W, n multiply-adds an entry, in rows that fit the cache, each then put in its place; then as torch's.

    Backward the gradient of W goes the same way back: read from its places, two matmuls.
    """
    n, a, b = r.n, r.a, r.b
    work = _linear(r, n * b, n * a)
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


def _components_first(r: _Request) -> Work:
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


def _rule_first(r: _Request) -> Work:
    """One n^2 x n matmul mixes, then n matmuls of n T inputs with the components, then the sum over k."""
    work = Work(r.machine, r.element_size)
    tokens, n, a, b = r.tokens, r.n, r.a, r.b
    work.move(tokens * n * b, tokens * n * b)
    work.mix(n * n, n, tokens * b)
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


def _table(work: Work, r: _Request) -> None:
    """The table of a rule held as factors: `n^2 R` products, then one matmul; backward twice that."""
    if r.rank is None or r.prepared:
        return
    for _ in range(3 if r.training else 1):
        work.move(0, r.n * r.n * r.rank)
        work.mix(r.n, r.rank, r.n * r.n)
        work.call(6)


def _bilinear(r: _Request, rank: int) -> Work:
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
    work.call(3)
    if r.training:
        _bilinear_backward(r, rank, work, tile, tokens)
    work.repeat(tiles, tile)
    return work


def _bilinear_backward(r: _Request, rank: int, work: Work, tile: Work, tokens: int | float) -> None:
    """The second part of _bilinear."""
    n, a, b = r.n, r.a, r.b
    if not r.prepared:
        work.mix(rank, n, a * b)
        work.mix(n, a * b, rank)
        work.mix(n, rank, a * b)
    work.move(r.tokens * n * a, rank * a * b)
    work.stream((2 if r.prepared else 3) * rank * a * b)  # blocks, once more, and their gradients: all new memory
    work.call(75)
    tile.move(n * tokens * (a + 2 * b), n * tokens * (a + 2 * b))
    if b < KEPT_FROM:
        tile.matmul(tokens, b, a, count=rank)
    tile.mix(n, tokens * a, rank)
    tile.mix(rank, n, tokens * a)
    tile.mix(rank, n, tokens * b)
    tile.matmul(a, tokens, b, count=rank)
    tile.matmul(tokens, a, b, count=rank)
    tile.mix(n, tokens * b, rank)
    tile.mix(n, rank, tokens * b)
    tile.call(12)
