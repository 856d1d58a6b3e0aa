"""Convolutions with 1/n of the parameters."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import Algebra
from nplex.nn import init
from nplex.nn.fresh import fresh_parameter
from nplex.nn.linear import check_same_place, check_widths
from nplex.nn.rule import Rule, as_rule
from nplex.nn.sharing import attach
from nplex.ops.conv import check_method, convolution
from nplex.ops.grouped import expand_grouped
from nplex.ops.tracing import full_precision

Sizes = int | tuple[int, ...]
_PLAIN = {
    "padding": (0, (0,), (0, 0), (0, 0, 0)), "dilation": (1, (1,), (1, 1), (1, 1, 1)),
    "output_padding": (0, (0,), (0, 0), (0, 0, 0)), "groups": (1,), "padding_mode": ("zeros",),
}  # fmt: skip
_ARGUMENTS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode",
)  # fmt: skip


class Conv(nn.Module):
    """What Conv1d, Conv2d and Conv3d share.

    `W[g] = sum_k kron(rule[k], components[k, g])` at each place of the kernel, for each group of channels.

    Parameters are those of torch's layer / n (the components), the rule and the bias. Hypercomplex numbers lie
    within a group: n is at most the channels of one. Where n does not divide them, blocks are ceil(channels / n)
    wide; missing inputs count as zero, surplus outputs are dropped.

    Shape:
        as torch's layer: input `(batch, in_channels, *space)` or without batch.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: as in torch.nn, as are stride, padding, dilation, groups, bias, padding_mode, device, dtype.
        stride: steps of the kernel.
        padding: a number, one for each dimension, "valid" or "same".
        dilation: distance of the kernel's places.
        groups: groups of channels that do not see each other.
        bias: whether b is learned.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.
        method: "dense", "bilinear" (a rule held as factors: mix, R groups of convolutions, mix), or "auto".

    Attributes:
        components: n x groups x ceil(out / n) x ceil(in / n) x kernel, with in and out the channels of a group.
        bias: out_channels numbers, or None.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4), with the
    kernel's places as further dimensions of the components.
    """

    torch_layer: ClassVar[Callable[..., nn.Module]]
    functional: ClassVar[Callable[..., Tensor]]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]
    rule: Rule
    components: nn.Parameter
    bias: nn.Parameter | None

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: int | Algebra | Rule,
        method: str = "auto",
    ) -> None:
        super().__init__()
        shape = type(self).torch_layer(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode,
            bias=False, device="meta",
        )  # fmt: skip
        # as torch reads its arguments, and refuses impossible ones
        for name in (*_ARGUMENTS, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(shape, name))
        rule = as_rule(rule, device=device, dtype=dtype)
        inputs, outputs = self._channels
        check_widths(rule.n, **{"in_channels / groups": inputs, "out_channels / groups": outputs})
        check_method(method, factors=rule.rank is not None)
        self.method = method
        n, a, b = rule.n, math.ceil(outputs / rule.n), math.ceil(inputs / rule.n)
        self.components = nn.Parameter(torch.empty(n, groups, a, b, *self.kernel_size, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        check_same_place(rule, self.components)
        attach(self, rule)
        self.reset_parameters()

    @property
    def _channels(self) -> tuple[int, int]:
        """Inputs and outputs of a group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    def reset_parameters(self) -> None:
        """First values for components and bias, with the variance of torch's layer."""
        bound = 1 / math.sqrt(self._channels[0] * math.prod(self.kernel_size))
        init.components_(self.components, rule_norm=self.rule.initial_norm, bound=bound)
        if self.bias is not None:
            init.bias_(self.bias, bound=bound)

    def forward(self, x: Float[Tensor, "*input"]) -> Float[Tensor, "*output"]:
        """Torch's convolution of x with W."""
        check_input(x, self.in_channels, len(self.kernel_size))
        batch = x if x.ndim == len(self.kernel_size) + 2 else x.unsqueeze(0)
        y = convolution(batch, self.rule(), self.components, self._channels, self._convolve, self.method)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).reshape(-1, *[1] * len(self.kernel_size))
        return y if batch is x else y.squeeze(0)

    def _convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """With this layer's stride, padding and dilation."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return type(self).functional(x, weight, None, self.stride, padding, self.dilation, groups)

    @property
    def weight(self) -> Float[Tensor, "out_channels inputs *kernel"]:
        """The dense weight of torch's layer, built at each call and differentiable."""
        inputs, outputs = self._channels
        return expand_grouped(self.rule(), self.components, outputs, inputs)

    @classmethod
    def like(cls, layer: Any, *, rule: int | Algebra | Rule) -> Any:
        """A fresh twin of a torch layer: same sizes, device, type and mode, new numbers."""
        return fresh_layer(cls, layer, _ARGUMENTS, rule)

    def to_torch(self) -> Any:
        """Torch's layer with the same weight and bias."""
        return torch_twin(self, _ARGUMENTS)

    def extra_repr(self) -> str:
        """One line for print(model), as torch writes it."""
        return describe(self)


class Conv1d(Conv):
    """torch.nn.Conv1d with 1/n of the parameters; all arguments and attributes are told by Conv."""

    torch_layer, functional = nn.Conv1d, staticmethod(F.conv1d)


class Conv2d(Conv):
    """torch.nn.Conv2d with 1/n of the parameters; all arguments and attributes are told by Conv."""

    torch_layer, functional = nn.Conv2d, staticmethod(F.conv2d)


class Conv3d(Conv):
    """torch.nn.Conv3d with 1/n of the parameters; all arguments and attributes are told by Conv."""

    torch_layer, functional = nn.Conv3d, staticmethod(F.conv3d)


def check_input(x: Tensor, channels: int, dimensions: int) -> None:
    """Refuses what has not these channels, or neither a batch dimension nor none.

    Raises:
        ValueError: says the shape expected.
    """
    if x.ndim not in (dimensions + 1, dimensions + 2) or x.shape[-dimensions - 1] != channels:
        space = ", ".join("*" * dimensions)
        raise ValueError(
            f"x must have shape (batch, {channels}, {space}) or ({channels}, {space}), got {tuple(x.shape)}"
        )


def fresh_layer(
    cls: Callable[..., nn.Module], layer: Any, names: tuple[str, ...], rule: int | Algebra | Rule
) -> nn.Module:
    """Our layer of a torch layer's arguments, bias, device, type and mode."""
    arguments, weight = {name: getattr(layer, name) for name in names}, layer.weight
    made = cls(**arguments, bias=layer.bias is not None, device=weight.device, dtype=weight.dtype, rule=rule)
    return made.train(layer.training)


@torch.no_grad()
def torch_twin(layer: Any, names: tuple[str, ...]) -> nn.Module:
    """Torch's layer of our layer's arguments, weight, bias and mode."""
    arguments = {name: getattr(layer, name) for name in names}
    made = type(layer).torch_layer(**arguments, bias=layer.bias is not None, device="meta")
    with full_precision(layer.components):
        made.weight = fresh_parameter(layer.weight)
    if layer.bias is not None:
        made.bias = nn.Parameter(layer.bias.clone())
    return made.train(layer.training)


def describe(layer: Any) -> str:
    """Channels, kernel and stride, what is not torch's plain choice, n: one line for print(model)."""
    parts = [
        f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}",
        *(
            f"{name}={value}"
            for name, usual in _PLAIN.items()
            if (value := getattr(layer, name, usual[0])) not in usual
        ),
        *(["bias=False"] if layer.bias is None else []),
        f"n={layer.rule.n}",
        *(["rule=shared"] if layer.rule.place == "shared" else []),
    ]
    return ", ".join(parts)
