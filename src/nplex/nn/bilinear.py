"""The layer of two inputs with 1/n of the parameters."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.nn.arguments import check_widths
from nplex.nn.expanded import Expanded
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.dispatch import check_method, product
from nplex.ops.tracing import autocast_type, full_precision, is_eager

# From so many pairs of inputs on (half a gigabyte in float32), they are not written down.
MOST_PAIRS = 2**27


class Bilinear(Expanded):
    """`y = x1 W x2 + b` with `W[:, :, c] = sum_k kron(rule[k], components[k, :, :, c])`: torch.nn.Bilinear with 1/n.

    The rule joins outputs and the first input; the second input's places are further dimensions of the components,
    as those of a kernel. So it is Linear's product with all pairs `x1[b] x2[c]` as inputs, by any of its methods,
    many times faster in training than torch's own kernel; this one, which needs less memory, takes over where the
    pairs of a call are very many.

    Shape:
        inputs `(*, in1_features)` and `(*, in2_features)`, output `(*, out_features)`.

    Args:
        in1_features: width of the first input.
        in2_features: width of the second input; any number, n need not be below it.
        out_features: width of the output.
        bias: whether b is learned.
        device: as in torch.nn.Bilinear.
        dtype: as in torch.nn.Bilinear.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.
        method: how to compute; "auto" plans it for each input size, see nplex.ops.plan_for.

    Attributes:
        components: n x 1 x ceil(out_features / n) x ceil(in1_features / n) x in2_features.
        bias: out_features numbers, or None.
        weight: torch's dense weight, built at each reading and differentiable.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Examples:
        >>> layer = Bilinear(20, 30, 40, rule=4)
        >>> layer(torch.zeros(128, 20), torch.zeros(128, 30)).shape
        torch.Size([128, 40])
    """

    torch_layer = nn.Bilinear
    in1_features: int
    in2_features: int
    out_features: int
    components: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in1_features: int,
        in2_features: int,
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
        check_widths(1, in2_features=in2_features)
        check_widths(rule.n, in1_features=in1_features)  # torch divides by it
        check_method(method, factors=rule.rank is not None)
        self.method = method
        self._build(nn.Bilinear(in1_features, in2_features, out_features, bias, "meta"), rule, device, dtype)

    def _widths(self) -> dict[str, int]:
        return {"in1_features": self.in1_features, "out_features": self.out_features}

    def _bound(self) -> float:
        return 1 / math.sqrt(self.in1_features)

    def forward(
        self, input1: Float[Tensor, "*batch d1"], input2: Float[Tensor, "*batch d2"]
    ) -> Float[Tensor, "*batch d_out"]:
        """`y[o] = sum_bc x1[b] W[o, b, c] x2[c] + b[o]`."""
        x1, x2 = input1, input2
        self._check(x1, x2)
        with full_precision(self.components):  # autocast leaves torch's layer alone
            if autocast_type(self.components) is not None:
                x1, x2 = x1.to(self.components.dtype), x2.to(self.components.dtype)
            if is_eager(x1, x2) and x1.numel() * self.in2_features > MOST_PAIRS:
                return F.bilinear(x1, x2, self.weight, self.bias)
            n, _, a, b, c = self.components.shape
            x1 = F.pad(x1, (0, n * b - self.in1_features))
            pairs = (x1[..., :, None] * x2[..., None, :]).flatten(-2)
            components, features = self.components.reshape(n, a, b * c), (n * b * c, self.out_features)
            return product(pairs, self.rule(), components, self.bias, features=features, method=self.method)

    def _check(self, x1: Tensor, x2: Tensor) -> None:
        widths = self.in1_features, self.in2_features
        if x1.ndim == 0 or x1.shape[:-1] != x2.shape[:-1] or (x1.shape[-1], x2.shape[-1]) != widths:
            raise ValueError(
                f"the inputs must have shapes (*, {widths[0]}) and (*, {widths[1]}) with the same *, got "
                f"{tuple(x1.shape)} and {tuple(x2.shape)}"
            )
