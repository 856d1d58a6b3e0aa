"""Transposed convolutions with 1/n of the parameters."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import Algebra
from nplex.nn import init
from nplex.nn.conv import Sizes, check_input, describe, fresh_layer, torch_twin
from nplex.nn.linear import check_same_place, check_widths
from nplex.nn.rule import Rule, as_rule
from nplex.nn.sharing import attach
from nplex.ops.grouped import expand_grouped, transposed

_ARGUMENTS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "dilation",
    "padding_mode",
)  # fmt: skip
# A method of torch's layers that reads nothing of them but output_padding, and is given the rest.
_output_padding: Callable[..., list[int]] = nn.modules.conv._ConvTransposeNd._output_padding


class ConvTranspose(nn.Module):
    """What ConvTranspose1d, ConvTranspose2d and ConvTranspose3d share.

    `W[g]^T = sum_k kron(rule[k], components[k, g]^T)` at each place of the kernel, for each group of channels.
    Torch's weight has the inputs first; rule[k, i, j] takes component j of the input to component i of the output,
    as everywhere.

    Parameters are those of torch's layer / n (the components), the rule and the bias. Hypercomplex numbers lie
    within a group: n is at most the channels of one. Where n does not divide them, blocks are ceil(channels / n)
    wide; missing inputs count as zero, surplus outputs are dropped.

    Shape:
        as torch's layer: input `(batch, in_channels, *space)` or without batch.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: as in torch.nn, as are stride, padding, output_padding, groups, bias, dilation, device, dtype.
        stride: places of the output between two of the input.
        padding: places cut off at both ends of the output.
        output_padding: places added at one end of the output.
        groups: groups of channels that do not see each other.
        bias: whether b is learned.
        dilation: distance of the kernel's places.
        padding_mode: "zeros", torch has no other.
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.

    Attributes:
        components: n x groups x ceil(in / n) x ceil(out / n) x kernel, with in and out the channels of a group.
        bias: out_channels numbers, or None.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size or rule is impossible; says what was expected.
    """

    torch_layer: ClassVar[Callable[..., nn.Module]]
    functional: ClassVar[Callable[..., Tensor]]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    dilation: tuple[int, ...]
    padding_mode: str
    rule: Rule
    components: nn.Parameter
    bias: nn.Parameter | None

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: int | Algebra | Rule,
    ) -> None:
        super().__init__()
        shape = type(self).torch_layer(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, False, dilation,
            padding_mode, device="meta",
        )  # fmt: skip
        for name in _ARGUMENTS:  # as torch reads them, and refuses impossible ones
            setattr(self, name, getattr(shape, name))
        rule = as_rule(rule, device=device, dtype=dtype)
        inputs, outputs = self._channels
        check_widths(rule.n, **{"in_channels / groups": inputs, "out_channels / groups": outputs})
        n, a, b = rule.n, math.ceil(inputs / rule.n), math.ceil(outputs / rule.n)
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
        """First values for components and bias, with the variance of torch's layer, which counts the outputs."""
        bound = 1 / math.sqrt(self._channels[1] * math.prod(self.kernel_size))
        init.components_(self.components, rule_norm=self.rule.initial_norm, bound=bound)
        if self.bias is not None:
            init.bias_(self.bias, bound=bound)

    def forward(
        self, x: Float[Tensor, "*input"], output_size: list[int] | tuple[int, ...] | None = None
    ) -> Float[Tensor, "*output"]:
        """Torch's transposed convolution of x with W; output_size takes the place of output_padding."""
        dimensions = len(self.kernel_size)
        check_input(x, self.in_channels, dimensions)
        size = None if output_size is None else list(output_size)
        more = _output_padding(self, x, size, self.stride, self.padding, self.kernel_size, dimensions, self.dilation)
        return type(self).functional(
            x, self.weight, self.bias, self.stride, self.padding, more, self.groups, self.dilation
        )

    @property
    def weight(self) -> Float[Tensor, "in_channels outputs *kernel"]:
        """The dense weight of torch's layer, built at each call and differentiable."""
        return expand_grouped(transposed(self.rule()), self.components, *self._channels)

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


class ConvTranspose1d(ConvTranspose):
    """torch.nn.ConvTranspose1d with 1/n of the parameters; its arguments and attributes are told by ConvTranspose."""

    torch_layer, functional = nn.ConvTranspose1d, staticmethod(F.conv_transpose1d)


class ConvTranspose2d(ConvTranspose):
    """torch.nn.ConvTranspose2d with 1/n of the parameters; its arguments and attributes are told by ConvTranspose."""

    torch_layer, functional = nn.ConvTranspose2d, staticmethod(F.conv_transpose2d)


class ConvTranspose3d(ConvTranspose):
    """torch.nn.ConvTranspose3d with 1/n of the parameters; its arguments and attributes are told by ConvTranspose."""

    torch_layer, functional = nn.ConvTranspose3d, staticmethod(F.conv_transpose3d)
