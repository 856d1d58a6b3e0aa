"""The fully-connected layer with 1/n of the parameters."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex import ops
from nplex.nn import init
from nplex.nn.arguments import check_widths
from nplex.nn.computed import read_only
from nplex.nn.twin import Twin
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.dispatch import check_method


class Linear(Twin):
    """`y = x W^T + b` with `W = sum_k kron(rule[k], components[k])`: torch.nn.Linear with 1/n of the parameters.

    Parameters are d_out d_in / n (the components), the rule (n^3, or 3 n R at a rank R) and the bias. Where n does
    not divide a width, blocks have ceil(d / n) numbers; inputs are padded with zeros and outputs cropped.

    Shape:
        input `(*, in_features)`, output `(*, out_features)`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: whether b is learned.
        device: as in torch.nn.Linear.
        dtype: as in torch.nn.Linear.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.
        method: how to compute; "auto" plans it for each input size, see nplex.ops.plan_for.

    Attributes:
        components: n x ceil(out_features / n) x ceil(in_features / n), the layer's own numbers.
        bias: out_features numbers, or None.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4).

    Examples:
        >>> layer = Linear(512, 2048, rule=4)
        >>> layer(torch.zeros(8, 512)).shape
        torch.Size([8, 2048])
        >>> sum(p.numel() for p in layer.parameters()), 512 * 2048 // 4 + 4**3 + 2048
        (264256, 264256)
    """

    __constants__ = ("in_features", "out_features")
    torch_layer = nn.Linear
    components: nn.Parameter
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
        method: str = "auto",
    ) -> None:
        super().__init__()
        rule = as_rule(rule, device=device, dtype=dtype)
        in_features, out_features = check_widths(rule.n, in_features=in_features, out_features=out_features)
        check_method(method, factors=rule.rank is not None)
        self.in_features, self.out_features, self.method = in_features, out_features, method
        n, a, b = rule.n, math.ceil(out_features / rule.n), math.ceil(in_features / rule.n)
        self._set_up(rule, {"components": (n, a, b), "bias": (out_features,) if bias else None}, device, dtype)

    def reset_parameters(self) -> None:
        """First values for components and bias; the rule, a module of its own, has its own reset_parameters."""
        bound = 1 / math.sqrt(self.in_features)
        init.components_(self.components, rule_norm=self.rule.initial_norm, bound=bound)
        if self.bias is not None:
            init.uniform_(self.bias, bound)

    def forward(self, input: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """`y = x W^T + b`."""
        features = (self.in_features, self.out_features)
        return ops.product(input, self.rule(), self.components, self.bias, features=features, method=self.method)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The dense W, built at each call, differentiable and read-only; to change it, change rule and components."""
        weight = ops.expand(self.rule(), self.components)[: self.out_features, : self.in_features]
        return read_only(weight.contiguous())
