"""Planning: sizes in, what each method would cost out. A plan can be made and printed without any layer.

What a method does stands beside its code, what that costs in nplex.ops.cost. Linear layers, grouped weights,
convolutions and lookups all ask a `chooser`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.cache import leaves
from nplex.ops.cards import GPU
from nplex.ops.cost import Cost
from nplex.ops.dense import linear_cost
from nplex.ops.machine import DEFAULT, Machine, current
from nplex.ops.method import Method, Request
from nplex.ops.methods import METHODS
from nplex.ops.tracing import autocast_type, constant_when_compiled, is_static

# With so few tokens all is in reading the weights. Where they are kept from call to call, as in generation, those of
# the model's other layers have pushed them out of the cache meanwhile.
FEW = 16
# A compiled or exported graph serves every batch size, so its method is planned once, for this many tokens; on CUDA
# for the real number where it is compiled for that alone.
TOKENS_WHEN_COMPILING = 512
# On a GPU, where no estimate was compared with a measurement yet, other methods than dense must promise this much.
PROMISED = 1.1
Sizes = tuple[int, int, int, int]  # n, a, b, places of a kernel
Circumstances = tuple[int, bool, bool, str, bool]  # bytes of a number, training, prepared, device, captured


@dataclass(frozen=True)
class Plan:
    """The method chosen for given sizes, with what each would have cost.

    Attributes:
        request: the sizes, and the machine.
        linear: what torch's Linear would cost.
        costs: what each method would cost.

    Examples:
        >>> from nplex.ops.machine import DEFAULT
        >>> print(plan_for(512, 2048, tokens=1024, n=4, rank=7, machine=DEFAULT))
        512 -> 2048, n = 4, rank 7, 1024 tokens, 4 bytes a number, forward
          method               MFLOP  of dense    MByte     estimate
          torch's Linear      2147.5      1.00     14.7    25.486 ms
          dense               2155.9      1.00     28.3    25.976 ms
          components_first    2214.6      1.03    122.7    36.662 ms
          rule_first          2164.3      1.01    124.8    36.244 ms
          bilinear             979.9      0.46     85.7    13.201 ms  <- chosen
          estimates for the default machine; run `nplex measure` to calibrate
    """

    request: Request
    linear: Cost
    costs: tuple[Cost, ...]

    @property
    def method(self) -> str:
        """The method with the lowest estimate."""
        return _cheapest(self.costs, self.request)

    def __str__(self) -> str:
        r = self.request
        rank = "full rule" if r.rank is None else f"rank {r.rank}"
        tokens = f"{r.tokens} token{'s' * (r.tokens != 1)}"
        lines = [
            f"{r.in_features} -> {r.out_features}, n = {r.n}, {rank}, {tokens}, "
            f"{r.element_size} bytes a number, {'training step' if r.training else 'forward'}"
            f"{', prepared' * r.prepared}",
            f"  {'method':<16} {'MFLOP':>9} {'of dense':>9} {'MByte':>8} {'estimate':>12}",
        ]
        for cost in (self.linear, *self.costs):
            share = cost.flops / self.linear.flops if self.linear.flops else 1.0
            chosen = "  <- chosen" if cost.method == self.method else ""
            lines.append(
                f"  {cost.method:<16} {cost.flops / 1e6:>9.1f} {share:>9.2f} {cost.bytes / 1e6:>8.1f} "
                f"{cost.seconds * 1e3:>9.3f} ms{chosen}"
            )
        default = "the default machine; run `nplex measure` to calibrate"
        lines.append(f"  estimates for {default if r.machine == DEFAULT else 'the machine measured'}")
        return "\n".join(lines)


def plan_for(  # noqa: PLR0913 - each is a size or a circumstance
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
            (dense), the blocks (bilinear), the rule's table and the components side by side (factored).
        machine: how fast it runs; None for the one measured, or the default.

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
    machine = current() if machine is None else machine
    r = Request(in_features, out_features, tokens, n, rank, element_size, training, prepared, machine)
    linear = linear_cost(_as_found(r), in_features, out_features).total("torch's Linear")
    return Plan(r, linear, _costs(tuple(METHODS.values()), r))


def chooser(methods: Mapping[str, Method]) -> Callable[..., str]:
    """A function that names the best of these methods for a call, `(tokens, sizes, rule, tensors, prepared)`.

    `sizes` are n, a, b of the blocks and the places of the kernel; `tensors` are the components and what else the
    call has gradients for.
    """

    def taken(tokens: int, sizes: Sizes, rank: int | None, how: Circumstances) -> str:
        (n, a, b, kernel), (element_size, training, prepared, device, captured) = sizes, how
        machine, compiled = current(device), torch.compiler.is_compiling()
        if captured:
            machine = replace(machine, seconds_per_call=1e-9)
        rest = (element_size, training, prepared, machine, kernel, compiled and device == GPU)
        request = Request(n * b, n * a, tokens, n, rank, *rest)
        costs = _costs if compiled else _costs_before
        return _cheapest(costs(tuple(methods.values()), request), request)

    @constant_when_compiled
    def taken_once(tokens: int, sizes: Sizes, rank: int | None, how: Circumstances) -> str:
        return taken(tokens, sizes, rank, how)  # to trace it would take torch.compile half a second a layer

    def best(
        tokens: int, sizes: Sizes, rule: Tensor | BilinearAlgorithm, tensors: tuple[Tensor, ...], prepared: bool
    ) -> str:
        components = tensors[0]
        training = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *leaves(rule)))
        # parameters have the same sizes at each call, other tensors' may be symbols
        run = taken_once if isinstance(components, torch.nn.Parameter) else taken
        device, size = components.device.type, components.element_size()
        if torch.compiler.is_compiling() and not (device == GPU and is_static(tokens)):
            tokens = TOKENS_WHEN_COMPILING
        if device == GPU and (dtype := autocast_type(components)) is not None:
            size = min(size, dtype.itemsize)
        rank = None if isinstance(rule, Tensor) else rule.rank
        return run(tokens, sizes, rank, (size, training, prepared, device, is_captured(components)))

    return best


def cheapest(methods: Mapping[str, Method], request: Request) -> Cost:
    """What the best of these methods costs."""
    costs = _costs(tuple(methods.values()), request)
    return next(cost for cost in costs if cost.method == _cheapest(costs, request))


def is_captured(tensor: Tensor) -> bool:
    """Whether a CUDA graph is being captured, which starts its operations without Python."""
    if not tensor.is_cuda or torch.compiler.is_compiling() or not torch.cuda.is_available():
        return False
    return torch.cuda.is_current_stream_capturing()


def _costs(methods: tuple[Method, ...], request: Request) -> tuple[Cost, ...]:
    r, costs = _as_found(request), []
    for method in methods:
        if method.cost is not None and not (method.needs_factors and r.rank is None):
            costs.append(method.cost(r).total(method.name))
    return tuple(costs)


_costs_before = functools.lru_cache(maxsize=4096)(_costs)  # layers ask at every call; torch.compile warns of it


def _cheapest(costs: tuple[Cost, ...], request: Request) -> str:
    gain = 1.0 if request.device.type == "cpu" else PROMISED
    best, least = "", math.inf
    for cost in costs:  # not min(key=...): torch.compile cannot trace that
        seconds = cost.seconds * (gain if cost.method != "dense" else 1.0)
        if seconds < least:
            best, least = cost.method, seconds
    return best


def _as_found(r: Request) -> Request:
    """The request, for a machine without a cache where few tokens find everything outside of it."""
    if r.prepared and r.tokens <= FEW:
        return r._replace(machine=replace(r.machine, cache_bytes=1.0))
    return r
