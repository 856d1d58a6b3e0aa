"""Planning: sizes in, what each method would cost out. A plan can be made and printed without any layer."""

import functools
import math
from dataclasses import dataclass

# A plain machine, where none was measured: 50 GFLOP/s, 10 GB/s, 5 microseconds for each torch operation.
FLOPS_PER_SECOND = 50e9
BYTES_PER_SECOND = 10e9
SECONDS_PER_CALL = 5e-6


@dataclass(frozen=True)
class Cost:
    """What one method does for one call of the layer, forward.

    Attributes:
        method: its name.
        flops: floating-point operations; a multiply-add counts 2.
        bytes: what is read and written once each: inputs, parameters, the tensors in between, outputs.
        calls: torch operations.
    """

    method: str
    flops: int
    bytes: int
    calls: int

    @property
    def seconds(self) -> float:
        """`flops / 50e9 + bytes / 10e9 + calls * 5e-6`: the plain machine's time."""
        return self.flops / FLOPS_PER_SECOND + self.bytes / BYTES_PER_SECOND + self.calls * SECONDS_PER_CALL


@dataclass(frozen=True)
class Plan:
    """The method chosen for given sizes, with what each would have cost.

    Examples:
        >>> print(plan(512, 2048, tokens=1024, n=4, rank=7))
        512 -> 2048, n = 4, rank 7, 1024 tokens, 4 bytes a number
          method             MFLOP  of dense    MByte  estimate
          torch's Linear    2147.5      1.00     14.7  44.42 ms
          dense             2155.9      1.00     28.3  45.97 ms
          components_first  2214.6      1.03    145.8  58.89 ms
          rule_first        2164.3      1.01     78.6  51.18 ms
          bilinear           979.9      0.46     51.9  24.82 ms  <- chosen
    """

    in_features: int
    out_features: int
    tokens: int
    n: int
    rank: int | None
    element_size: int
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
        linear = _linear(self.in_features, self.out_features, self.tokens, self.element_size)
        rank = "full rule" if self.rank is None else f"rank {self.rank}"
        lines = [
            f"{self.in_features} -> {self.out_features}, n = {self.n}, {rank}, {self.tokens} tokens, "
            f"{self.element_size} bytes a number",
            f"  {'method':<16} {'MFLOP':>7} {'of dense':>9} {'MByte':>8}  estimate",
        ]
        for cost in (linear, *self.costs):
            share = cost.flops / linear.flops if linear.flops else 1.0
            chosen = "  <- chosen" if cost.method == self.method else ""
            lines.append(
                f"  {cost.method:<16} {cost.flops / 1e6:>7.1f} {share:>9.2f} {cost.bytes / 1e6:>8.1f} "
                f"{cost.seconds * 1e3:>6.2f} ms{chosen}"
            )
        return "\n".join(lines)


@functools.lru_cache(maxsize=4096)
def plan(
    in_features: int, out_features: int, *, tokens: int, n: int, rank: int | None = None, element_size: int = 4
) -> Plan:
    """What each method costs for a layer in_features -> out_features, and which is taken.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        tokens: rows of the input, all batch dimensions multiplied; may be 0.
        n: the dimension of the algebra.
        rank: R of a rule held as factors; None for a full table, which rules the bilinear method out.
        element_size: bytes of a number: 4 for float32, 2 for bfloat16.

    Raises:
        ValueError: a size is not positive; it is named.
    """
    sizes = {"in_features": in_features, "out_features": out_features, "n": n, "element_size": element_size}
    sizes |= {} if rank is None else {"rank": rank}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, got {size}")
    if tokens < 0:
        raise ValueError(f"tokens must be 0 or more, got {tokens}")
    for name in ("in_features", "out_features"):
        if n > sizes[name]:
            raise ValueError(f"n = {n} is larger than {name} = {sizes[name]}: take n of {sizes[name]} or less")
    a, b = math.ceil(out_features / n), math.ceil(in_features / n)
    costs = [_dense(a, b, tokens, n), _components_first(a, b, tokens, n), _rule_first(a, b, tokens, n)]
    if rank is not None:
        costs.append(_bilinear(a, b, tokens, n, rank))
    scaled = tuple(Cost(c.method, c.flops, c.bytes * element_size, c.calls) for c in costs)
    return Plan(in_features, out_features, tokens, n, rank, element_size, scaled)


def _linear(in_features: int, out_features: int, tokens: int, element_size: int) -> Cost:
    """torch.nn.Linear: read x and W, write y."""
    numbers = tokens * (in_features + out_features) + in_features * out_features
    return Cost("torch's Linear", 2 * tokens * in_features * out_features, numbers * element_size, 1)


def _dense(a: int, b: int, tokens: int, n: int) -> Cost:
    """Build W: n multiply-adds an entry, written, put in place, read; then as torch's Linear."""
    weight = n * n * a * b
    flops = 2 * n * weight + 2 * tokens * weight
    return Cost("dense", flops, n * a * b + 4 * weight + tokens * n * (a + b), 4)


def _components_first(a: int, b: int, tokens: int, n: int) -> Cost:
    """The middle, n^2 a numbers a token, is written, put in order and read."""
    flops = 2 * tokens * n * n * a * b + 2 * tokens * n**3 * a
    return Cost("components_first", flops, n * a * b + tokens * (n * b + 4 * n * n * a + n * a), 5)


def _rule_first(a: int, b: int, tokens: int, n: int) -> Cost:
    """The middle, n^2 b numbers a token, is written and read; y is added to n times."""
    flops = 2 * tokens * n * n * a * b + 2 * tokens * n**3 * b
    return Cost("rule_first", flops, n * a * b + tokens * (n * b + 2 * n * n * b + (2 * n - 1) * n * a), 3 + n)


def _bilinear(a: int, b: int, tokens: int, n: int, rank: int) -> Cost:
    """Blocks, mixed inputs and block products are written and read."""
    flops = 2 * rank * (n * a * b + tokens * (a * b + n * (a + b)))
    return Cost("bilinear", flops, (n + 2 * rank) * a * b + tokens * (n + 2 * rank) * (a + b), 6)
