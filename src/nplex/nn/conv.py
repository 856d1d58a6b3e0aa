"""Convolutions and transposed ones with 1/n of the parameters."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.nn.arguments import plain
from nplex.nn.expanded import Expanded
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.conv import check_method, convolution

Sizes = int | tuple[int, ...]
# Torch's layout of images with the channels last, by the dimensions of their space.
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class _Channels(Expanded):
    """What both kinds of convolution share: channels in groups, and a kernel."""

    torch_layer: ClassVar[Any]
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    components: nn.Parameter
    bias: nn.Parameter | None
    # Whether .to(memory_format=torch.channels_last) was asked for: torch's layer has its weight so, and then answers
    # so. Components are laid out as ever.
    _channels_last = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As torch's, and looks what it would do to torch's weight: move its channels last, or back."""
        super()._apply(fn, recurse)
        if len(self.kernel_size) in LAST:
            with torch.no_grad():
                image = self.components.new_empty(2, 2, *[2] * len(self.kernel_size))
                self._channels_last = _has_channels_last(fn(self._laid_out(image)))
        return self

    @classmethod
    def _like(cls, layer: Any, options: dict[str, Any]) -> Any:
        twin = super()._like(layer, options)
        twin._channels_last = _has_channels_last(layer.weight)
        return twin

    def _dense(self, names: list[str], *, keep: bool = False) -> list[Any]:
        return [None if t is None else self._laid_out(t) for t in super()._dense(names, keep=keep)]

    def _laid_out(self, images: Tensor) -> Tensor:
        """Images, or a weight, with the channels last where that was asked for; biases as they are."""
        last = self._channels_last and images.ndim > 1
        return images.contiguous(memory_format=LAST[len(self.kernel_size)]) if last else images

    def _widths(self) -> dict[str, int]:
        inputs, outputs = self._channels
        return {"in_channels / groups": inputs, "out_channels / groups": outputs}

    def _groups(self, name: str, rows: int) -> int:
        return self.groups

    @property
    def _channels(self) -> tuple[int, int]:
        return self.in_channels // self.groups, self.out_channels // self.groups

    def _bound(self) -> float:
        """Torch counts the second dimension of its weight: inputs, or outputs where it is transposed."""
        return 1 / math.sqrt(self._channels[self._inputs_first] * math.prod(self.kernel_size))

    def _check(self, input: Tensor) -> None:
        """Refuses what has not these channels, or neither a batch dimension nor none.

        Raises:
            ValueError: says the shape expected.
        """
        dimensions, channels = len(self.kernel_size), self.in_channels
        if input.ndim not in (dimensions + 1, dimensions + 2) or input.shape[-dimensions - 1] != channels:
            space = ", ".join("*" * dimensions)
            raise ValueError(
                f"input must have shape (batch, {channels}, {space}) or ({channels}, {space}), got "
                f"{tuple(input.shape)}"
            )


class Conv(_Channels):
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
        weight: torch's dense weight, built at each reading and differentiable.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), equations (3) and (4), with the
    kernel's places as further dimensions of the components.
    """

    functional: ClassVar[Callable[..., Tensor]]
    _reversed_padding_repeated_twice: list[int]

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
        rule: RuleLike,
        method: str = "auto",
    ) -> None:
        super().__init__()
        shape = self.torch_layer(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, "meta"
        )
        self._reversed_padding_repeated_twice = plain(shape._reversed_padding_repeated_twice)
        rule = as_rule(rule, device=device, dtype=dtype)
        check_method(method, factors=rule.rank is not None)
        self.method = method
        self._build(shape, rule, device, dtype)

    def forward(self, input: Float[Tensor, "*input"]) -> Float[Tensor, "*output"]:
        """Torch's convolution of the input with W."""
        self._check(input)
        batch = input if (batched := input.ndim == len(self.kernel_size) + 2) else input.unsqueeze(0)
        batch = self._laid_out(batch)
        y = convolution(batch, self.rule(), self.components, self._channels, self._convolve, self.method)
        if _has_channels_last(batch):
            y = y.contiguous(memory_format=LAST[len(self.kernel_size)])
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).reshape(-1, *[1] * len(self.kernel_size))
        return y if batched else y.squeeze(0)

    def _convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return type(self).functional(x, weight, None, self.stride, padding, self.dilation, groups)


class Conv1d(Conv):
    """torch.nn.Conv1d with 1/n of the parameters; all arguments and attributes are told by Conv."""

    torch_layer, functional = nn.Conv1d, staticmethod(F.conv1d)


class Conv2d(Conv):
    """torch.nn.Conv2d with 1/n of the parameters; all arguments and attributes are told by Conv."""

    torch_layer, functional = nn.Conv2d, staticmethod(F.conv2d)


class Conv3d(Conv):
    """torch.nn.Conv3d with 1/n of the parameters; all arguments and attributes are told by Conv."""

    torch_layer, functional = nn.Conv3d, staticmethod(F.conv3d)


class ConvTranspose(_Channels):
    """What ConvTranspose1d, ConvTranspose2d and ConvTranspose3d share; what is not said here is as in Conv.

    `W[g]^T = sum_k kron(rule[k], components[k, g]^T)` at each place of the kernel, for each group of channels.
    Torch's weight has the inputs first; rule[k, i, j] takes component j of the input to component i of the output,
    as everywhere.

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

    Raises:
        ValueError: a size or rule is impossible; says what was expected.
    """

    _inputs_first = True

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
        rule: RuleLike,
    ) -> None:
        super().__init__()
        shape = self.torch_layer(
            in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
            padding_mode, "meta",
        )  # fmt: skip
        self._build(shape, rule, device, dtype)

    def forward(
        self, input: Float[Tensor, "*input"], output_size: list[int] | tuple[int, ...] | None = None
    ) -> Float[Tensor, "*output"]:
        """Torch's transposed convolution of the input with W; output_size takes the place of output_padding."""
        self._check(input)
        return self.torch_layer.forward(self, input, output_size)


class ConvTranspose1d(ConvTranspose):
    """torch.nn.ConvTranspose1d with 1/n of the parameters; its arguments and attributes are told by ConvTranspose."""

    torch_layer = nn.ConvTranspose1d


class ConvTranspose2d(ConvTranspose):
    """torch.nn.ConvTranspose2d with 1/n of the parameters; its arguments and attributes are told by ConvTranspose."""

    torch_layer = nn.ConvTranspose2d


class ConvTranspose3d(ConvTranspose):
    """torch.nn.ConvTranspose3d with 1/n of the parameters; its arguments and attributes are told by ConvTranspose."""

    torch_layer = nn.ConvTranspose3d


def _has_channels_last(images: Tensor) -> bool:
    """Whether neighbours in memory are the channels of one place; one channel or one place is both."""
    if images.ndim not in (4, 5) or images.shape[1] == 1 or images.shape[2:].numel() == 1:
        return False
    return images.stride(1) == 1 and images.stride()[2:] == tuple(
        images.shape[1] * math.prod(images.shape[d + 1 :]) for d in range(2, images.ndim)
    )
