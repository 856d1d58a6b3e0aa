"""What a layer costs under a rule and as torch's, by the plan: arithmetic, time, and what it keeps for backward."""

import math
from typing import Any, NamedTuple

from torch import nn

from nplex.convert.spec import Choice
from nplex.convert.twins import untransposed
from nplex.ops import conv, lookup
from nplex.ops.cost import Cost
from nplex.ops.dense import add_build, linear_cost
from nplex.ops.machine import current
from nplex.ops.method import Request
from nplex.ops.methods import METHODS
from nplex.ops.plan import cheapest


class Call(NamedTuple):
    """How often a layer is called in a forward, and with how much.

    Attributes:
        tokens: rows of its input, or places of a convolution's output; of one call.
        times: calls of that size.
        element_size: bytes of a number.
        device: where.
    """

    tokens: int
    times: int
    element_size: int
    device: str


class Change(NamedTuple):
    """What a rule changes in one call: numbers of torch's layer, and those of ours.

    Attributes:
        method: what the plan takes.
        flops: before and afterwards.
        seconds: before and afterwards, by the plan; what is the same in both, as gates, is in neither.
        kept: bytes more that are kept for backward, and that a built weight takes.
    """

    method: str
    flops: tuple[int, int]
    seconds: tuple[float, float]
    kept: int


def change(layer: Any, choice: Choice, call: Call, *, training: bool) -> Change:
    """What the rule changes in one call of a dense layer; inference is as inside nplex.nn.cached.

    Args:
        layer: of torch, of a kind that has a twin.
        choice: the rule, or the low rank.
        call: its input.
        training: whether gradients are counted too.
    """
    layer, rule = untransposed(layer), choice.template
    low_rank, methods, before, after, kept = choice.low_rank(layer), [], [], [], 0
    for rows, columns, *kernel in (tuple(p.shape) for p in layer.parameters() if p.ndim > 1):
        groups = getattr(layer, "groups", 1) if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1
        n = min(rule.n, rows, columns)
        size = (columns, rows // groups, call.tokens, n, rule.rank, call.element_size, training, not training)
        request = Request(*size, current(call.device), math.prod(kernel))
        old, new = _costs(layer, request, low_rank)
        methods.append(new.method)
        before.append((groups * old.flops, groups * old.seconds))
        after.append((groups * new.flops, groups * new.seconds))
        if training:
            kept += call.element_size * _kept(new.method, request, rows * columns * request.kernel, low_rank)
    (flops, seconds), (new_flops, new_seconds) = (map(sum, zip(*each, strict=True)) for each in (before, after))
    return Change(max(methods, key=methods.count), (flops, new_flops), (seconds, new_seconds), kept)


def _costs(layer: nn.Module, r: Request, low_rank: int | None) -> tuple[Cost, Cost]:
    """Of a weight as torch's and as ours."""
    if low_rank is not None:
        both = r.work()
        both.repeat(1, linear_cost(r, r.in_features, low_rank))
        both.repeat(1, linear_cost(r, low_rank, r.out_features))
        return linear_cost(r, r.in_features, r.out_features).total("linear"), both.total("low rank")
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return linear_cost(r, r.in_features, r.out_features).total("linear"), cheapest(METHODS, r)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        built = conv.METHODS["dense"].cost(r._replace(prepared=True))  # pyright: ignore - it has one
        return built.total("dense"), cheapest(conv.METHODS, r)
    if isinstance(layer, nn.Embedding):
        moved = r.work()
        moved.move(r.tokens * r.in_features, r.tokens * r.in_features)
        return moved.total("lookup"), cheapest(lookup.METHODS, r)
    build: Any = r.work()  # a weight that is built for torch's own kernel
    if not r.prepared:
        add_build(build, r)
    return r.work().total("dense"), build.total("dense")


def _kept(method: str, r: Request, weight: int, low_rank: int | None) -> int:
    """Numbers that are kept for backward beside the input: a built weight, or what stands between two products."""
    if low_rank is not None:
        return r.tokens * low_rank
    if method == "bilinear":
        return r.tokens * (r.rank or 0) * r.a
    if method == "components_first":
        return r.tokens * r.n * r.n * r.a
    return r.tokens * r.n * r.n * r.b if method == "rule_first" else weight * (method == "dense")
