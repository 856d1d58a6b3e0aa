"""What an adapter adds to a layer: a delta of low rank, and the hook by which the layer adds it to its output."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra.bilinear import as_table
from nplex.nn import Rule
from nplex.nn.arguments import check_positive, check_widths
from nplex.nn.init import uniform_
from nplex.nn.sharing import RuleUser, attach
from nplex.ops.dense import expand
from nplex.ops.low_rank import product
from nplex.ops.tracing import autocast_type, forget_graphs


class Delta(RuleUser):
    """`y = scale x V^T` with `V = sum_k kron(rule[k], left[k] right[k])`, zero at the start: left is zero.

    V is never built. Trained are low_rank (d_in + d_out) numbers, and the rule. A low_rank below 1 is the share m / n
    of components that there are, each of rank 1. Where the input is of 16 bits and no autocast is on, it is computed
    in the type of its own numbers.

    Attributes:
        left: m x ceil(d_out / n) x r, zero at first; m = n and r = low_rank, or r = 1.
        right: m x r x ceil(d_in / n), uniform at first: each `sum_j rule[k, i, j] right[k] x[j]` has the variance
            that LoRA's first product has.
        rule: registered here unless it is shared.

    Raises:
        ValueError: a width or rank is impossible.
    """

    rule: Rule

    def __init__(
        self, widths: tuple[int, int], rule: Rule, low_rank: int | float, scale: int | float, dropout: int | float,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        super().__init__()
        d_in, d_out = check_widths(rule.n, in_features=widths[0], out_features=widths[1])
        (m, r), a, b = components(rule.n, low_rank), math.ceil(d_out / rule.n), math.ceil(d_in / rule.n)
        if r > min(a, b):
            raise ValueError(f"low_rank = {r} is larger than blocks of {a} x {b} can have: {min(a, b)} or less")
        self.in_features, self.out_features, self.low_rank = d_in, d_out, low_rank
        self.scale, self.dropout = scale, dropout
        self.left = nn.Parameter(torch.empty(m, a, r, device=device, dtype=dtype))
        self.right = nn.Parameter(torch.empty(m, r, b, device=device, dtype=dtype))
        attach(self, rule)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """First values of its own numbers; the rule has its own reset_parameters."""
        self.left.zero_()
        bound = self.rule.n / self.rule.initial_norm / math.sqrt(self.right.shape[2])
        uniform_(self.right, bound)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`scale x V^T`."""
        x = x.to(self.left.device, x.dtype if autocast_type(x) else self.left.dtype)
        if self.dropout:
            x = nn.functional.dropout(x, self.dropout, self.training)
        table = as_table(self.rule()).to(x.device)  # where the layers of a model are on several
        return product(x, table, self.scale * self.left, self.right, out_features=self.out_features)

    @torch.no_grad()
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """`scale V` as numbers, in float32 or better."""
        kind = torch.promote_types(self.left.dtype, torch.float32)
        left, right, table = (t.to(kind) for t in (self.left, self.right, as_table(self.rule())))
        blocks = self.scale * left @ right
        blocks = torch.cat([blocks, blocks.new_zeros(self.rule.n - len(blocks), *blocks.shape[1:])])
        return expand(table.to(left.device), blocks)[: self.out_features, : self.in_features]

    def extra_repr(self) -> str:
        """One line for print(model)."""
        shared = ", rule=shared" * self.rule.is_shared
        dropout = f", dropout={self.dropout:g}" * bool(self.dropout)
        return (
            f"{self.in_features}, {self.out_features}, n={self.rule.n}, low_rank={self.low_rank}, "
            f"scale={self.scale:g}{dropout}{shared}"
        )


def components(n: int, low_rank: int | float) -> tuple[int, int]:
    """How many of n components there are, and their rank: all of rank `low_rank`, or of rank 1 its share of n.

    Raises:
        ValueError: it is neither a whole number nor a share of n.
    """
    if isinstance(low_rank, float):
        m = round(n * low_rank) if 0 < low_rank < 1 else 0
        if not m or abs(m - n * low_rank) > 1e-6 * n:
            raise ValueError(f"low_rank must be whole, or k/{n} for a rule with n = {n}; got {low_rank!r}")
        return m, 1
    return n, check_positive("low_rank", low_rank)


class Guests(nn.ModuleDict):
    """Modules by name that are no part of the base: its checkpoints, which know nothing of them, load strictly."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_keep)


def _keep(guests: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Lets guests keep their numbers where a state that is loaded holds none of them."""
    if not any(name.startswith(prefix) for name in state):
        state |= {prefix + name: p for name, p in (*guests.named_parameters(), *guests.named_buffers())}


class Deltas(Guests):
    """The adapters of one layer, `layer.adapters`, by name.

    Attributes:
        active: the name of the one that is added, or None.
        handle: of the layer's hook; kept, because torch learns from it which numbers hooks of a loaded model have.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.active: str | None = None
        self.hook_in(layer)

    def hook_in(self, layer: nn.Module) -> None:
        """Lets the layer add the active delta."""
        forget_graphs()
        self.handle = layer.register_forward_hook(add_delta, with_kwargs=True)


def add_delta(layer: Any, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """The hook: the output of the layer plus that of its active delta."""
    name = layer.adapters.active
    if name is None:
        return output
    x, delta = args[0] if args else next(iter(kwargs.values())), layer.adapters[name]
    if not x.is_nested:
        return output + delta(x).to(output)
    if x.layout is torch.jagged:
        return output + torch.nested.nested_tensor_from_jagged(delta(x.values()), x.offsets(), x.lengths()).to(output)
    return output + torch.nested.as_nested_tensor([delta(part) for part in x.unbind()]).to(output)
