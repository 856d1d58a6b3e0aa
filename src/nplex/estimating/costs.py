"""What a rule changes in a layer, by the plan: arithmetic, time, and what is kept for backward."""

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
from nplex.ops.tiles import KEPT_FROM, KEPT_SHARE


class Change(NamedTuple):
    """One call of a layer: as torch's, and as ours.

    Attributes:
        method: what the plan takes.
        flops: before and afterwards.
        seconds: before and afterwards, by the plan; what is the same in both, as gates, is in neither.
        kept: bytes more that are kept for backward.
    """

    method: str
    flops: tuple[int, int]
    seconds: tuple[float, float]
    kept: int


def change(layer: Any, choice: Choice, tokens: int, *, training: bool) -> Change:
    """What the rule changes in one call of torch's layer; inference is as inside nplex.nn.cached.

    Args:
        layer: of a kind that has a twin.
        choice: the rule, or the low rank.
        tokens: rows of the input, or places of a convolution's output.
        training: whether gradients are counted too.
    """
    layer, rule = untransposed(layer), choice.template
    low_rank, olds, news, kept = choice.low_rank(layer), [], [], 0
    for weight in (p for p in layer.parameters() if p.ndim > 1):
        rows, columns, *kernel = weight.shape
        n, size = min(rule.n, rows, columns), weight.element_size()
        machine = current(weight.device.type)
        request = Request(columns, rows, tokens, n, rule.rank, size, training, not training, machine)
        old, new = _costs(layer, request._replace(kernel=math.prod(kernel)), low_rank)
        olds.append(old)
        news.append(new)
        kept += size * training * _kept(new.method, request, weight.numel(), low_rank)
    flops, seconds = ([sum(getattr(c, of) for c in costs) for costs in (olds, news)] for of in ("flops", "seconds"))
    return Change(news[0].method, tuple(flops), tuple(seconds), kept)  # pyright: ignore - of two


def _costs(layer: nn.Module, r: Request, low_rank: int | None) -> tuple[Cost, Cost]:
    """Of a weight as torch's and as ours."""
    linear = linear_cost(r, r.in_features, r.out_features).total("dense")
    if low_rank is not None:
        (both := linear_cost(r, r.in_features, low_rank)).repeat(1, linear_cost(r, low_rank, r.out_features))
        return linear, both.total("low rank")
    if isinstance(layer, nn.Linear | nn.MultiheadAttention):
        return linear, cheapest(METHODS, r)
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        methods: Any = conv.METHODS
        return methods["dense"].cost(r._replace(prepared=True)).total("dense"), cheapest(methods, r)
    if isinstance(layer, nn.Embedding):
        return r.work().total("dense"), cheapest(lookup.METHODS, r)
    build = r.work()  # the weight, which torch's own kernel takes then
    if not r.prepared:
        add_build(build, r)
    return r.work().total("dense"), build.total("dense")


def _kept(method: str, r: Request, weight: int, low_rank: int | None) -> int:
    """Numbers that are kept for backward beside the input: a built weight, or what stands between two products."""
    products = (r.rank or 0) * r.a if r.b >= KEPT_FROM else min((r.rank or 0) * r.a, int(KEPT_SHARE * r.n * r.b))
    between = {"bilinear": products, "components_first": r.n * r.n * r.a, "rule_first": r.n * r.n * r.b}
    between["low rank"] = low_rank or 0
    return r.tokens * between[method] if method in between else weight * (method == "dense")
