"""The fully-connected layer whose components have a low rank."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.nn import init
from nplex.nn.arguments import check_positive, check_widths
from nplex.nn.computed import read_only
from nplex.nn.twin import Twin
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.dense import expand
from nplex.ops.low_rank import product


class LowRankLinear(Twin):
    """`y = x W^T + b` with `W = sum_k kron(rule[k], left[k] right[k])`: Linear with components of low rank.

    Parameters are low_rank (d_in + d_out) for the factors, the rule and the bias. Neither W nor the components are
    ever multiplied out: a token costs `low_rank n (d_in + n^2 + d_out)` multiply-adds.

    Shape:
        input `(*, in_features)`, output `(*, out_features)`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether b is learned.
        device: as in torch.nn.Linear.
        dtype: as in torch.nn.Linear.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.
        low_rank: the rank r of each component; unlike the rank R of a rule, which is the number of its products.

    Attributes:
        left: n x ceil(out_features / n) x r.
        right: n x r x ceil(in_features / n).
        bias: out_features numbers, or None.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or rank is impossible; says what was expected.

    Source: Mahabadi et al., Compacter: Efficient Low-Rank Hypercomplex Adapter Layers (2021), section 4.

    Examples:
        >>> layer = LowRankLinear(512, 2048, rule=4, low_rank=8)
        >>> layer(torch.zeros(8, 512)).shape
        torch.Size([8, 2048])
        >>> sum(p.numel() for p in layer.parameters()), 8 * (512 + 2048) + 4**3 + 2048
        (22592, 22592)
    """

    torch_layer, _printed = nn.Linear, ("low_rank",)
    in_features: int
    out_features: int
    low_rank: int
    left: nn.Parameter
    right: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
        low_rank: int,
    ) -> None:
        super().__init__()
        rule = as_rule(rule, power=1.0, device=device, dtype=dtype)
        in_features, out_features = check_widths(rule.n, in_features=in_features, out_features=out_features)
        low_rank = check_positive("low_rank", low_rank)
        n, a, b = rule.n, math.ceil(out_features / rule.n), math.ceil(in_features / rule.n)
        if low_rank > min(a, b):
            raise ValueError(
                f"low_rank = {low_rank} is larger than a component of {a} x {b} can have: take {min(a, b)} or less, "
                f"or nplex.nn.Linear"
            )
        self.in_features, self.out_features, self.low_rank = in_features, out_features, low_rank
        sizes = {"left": (n, a, low_rank), "right": (n, low_rank, b), "bias": (out_features,) if bias else None}
        self._set_up(rule, sizes, device, dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """First values for both factors and the bias: W gets the variance of torch.nn.Linear's.

        An entry of a component is a sum of r products, so with `v` its variance (init.components_) the factors
        need `var(left) var(right) = v / r`. Both get the same expected norm, `a var(left) = b var(right)`, so that
        neither learns faster than the other.
        """
        n, a, r = self.left.shape
        b, bound = self.right.shape[2], 1 / math.sqrt(self.in_features)
        deviation = n * bound / self.rule.initial_norm / math.sqrt(3 * r)
        limits = (math.sqrt(3 * deviation * math.sqrt(ratio)) for ratio in (b / a, a / b))
        for factor, limit in zip((self.left, self.right), limits, strict=True):
            init.uniform_(factor, limit)
        if self.bias is not None:
            init.uniform_(self.bias, bound)

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`y = x W^T + b`."""
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(
                f"input must have {self.in_features} numbers in its last dimension, got shape {tuple(input.shape)}"
            )
        return product(input, self.rule(), self.left, self.right, self.bias, out_features=self.out_features)

    @property
    def components(self) -> Float[Tensor, "n a b"]:
        """`left[k] right[k]`, built at each call and differentiable."""
        return self.left @ self.right

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The dense W, built at each call, differentiable and read-only; to change it, change rule and factors."""
        return read_only(expand(self.rule(), self.components)[: self.out_features, : self.in_features].contiguous())

    @classmethod
    def like(cls, layer: Any, *, rule: RuleLike, low_rank: int) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A fresh twin of a torch.nn.Linear: same sizes, device, type and mode, new numbers."""
        return cls._like(layer, {"rule": rule, "low_rank": low_rank})
