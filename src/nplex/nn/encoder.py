"""The encoder of a transformer whose attention and linear layers have 1/n of the parameters."""

import warnings
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import Algebra
from nplex.nn.attention import MultiheadAttention
from nplex.nn.fresh import fresh_rule
from nplex.nn.linear import Linear
from nplex.nn.rule import Rule
from nplex.nn.transformer_parts import (
    Activation,
    arguments,
    as_activation,
    attend,
    causal_hint,
    copies,
    dense,
    feed_forward,
    fresh_norm,
    twins,
    with_parts_of,
)
from nplex.ops.attention import Mask


class TransformerEncoderLayer(nn.Module):
    """`x = norm1(x + attention(x, x, x))`, then `norm2(x + linear2(activation(linear1(x))))`: torch's, and a rule.

    With norm_first, `x + attention(norm1(x), ...)` and so on. Dropout follows the attention, the activation and
    linear2. Parameters are those of torch's layer / n, beside biases and norms, and the rules.

    Shape:
        `(length, batch, d_model)`, batch first where asked, or `(length, d_model)`; output as input.

    Args:
        d_model: width of input and output.
        nhead: the number of heads; divides d_model.
        dim_feedforward: width between the linear layers.
        dropout: the share of numbers set to zero in training.
        activation: "relu", "gelu", a function or a module.
        layer_norm_eps: added to the variance by the norms.
        batch_first: whether the batch is the first dimension.
        norm_first: whether the norms come before attention and linear layers.
        bias: whether these and the norms have biases.
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n for learned rules, an Algebra for fixed ones, or a Rule. Each attention and linear layer gets a fresh
            rule of its own like it; only a rule that is shared (`nplex.nn.share`) is used itself.
        method: how to compute the products; "auto" plans it for each input size, see nplex.ops.plan_for.

    Attributes:
        self_attn: a MultiheadAttention.
        linear1: a Linear, as linear2.
        norm1: torch's LayerNorm, as norm2.

    Raises:
        ValueError: a size, rule, activation or method is impossible; says what was expected.

    Source: Vaswani et al., Attention Is All You Need (2017), section 3; Zhang et al., Beyond Fully-Connected Layers
    with Quaternions (2021): the PHM-Transformer.

    Examples:
        >>> layer = TransformerEncoderLayer(64, 8, 256, batch_first=True, rule=4)
        >>> layer(torch.zeros(2, 5, 64)).shape
        torch.Size([2, 5, 64])
    """

    __constants__ = ("norm_first",)

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: int | Algebra | Rule,
        method: str = "auto",
    ) -> None:
        super().__init__()
        place: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        attention = partial(MultiheadAttention, dropout=dropout, batch_first=batch_first, method=method, **place)
        linear, norm = partial(Linear, method=method, **place), partial(nn.LayerNorm, eps=layer_norm_eps, **place)
        self.self_attn = attention(d_model, nhead, rule=fresh_rule(rule))
        self.linear1 = linear(d_model, dim_feedforward, rule=fresh_rule(rule))
        self.dropout = nn.Dropout(dropout)
        self.linear2 = linear(dim_feedforward, d_model, rule=fresh_rule(rule))
        self.norm_first = norm_first
        self.norm1, self.norm2 = norm(d_model), norm(d_model)
        self.dropout1, self.dropout2 = nn.Dropout(dropout), nn.Dropout(dropout)
        self.activation = as_activation(activation)

    def forward(
        self,
        src: Float[Tensor, "*length d_model"],
        src_mask: Mask | None = None,
        src_key_padding_mask: Mask | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "*length d_model"]:
        """One layer of the encoder.

        Args:
            src: the sequences.
            src_mask: as attn_mask of MultiheadAttention.
            src_key_padding_mask: as key_padding_mask of MultiheadAttention.
            is_causal: a hint that src_mask is the causal one.

        Raises:
            ValueError: see MultiheadAttention.
        """
        x, masks = src, (src_mask, src_key_padding_mask, is_causal)
        if self.norm_first:
            y = self.norm1(x)
            x = x + self.dropout1(attend(self.self_attn, y, y, *masks))
            return x + self.dropout2(feed_forward(self, self.norm2(x)))
        x = self.norm1(x + self.dropout1(attend(self.self_attn, x, x, *masks)))
        return self.norm2(x + self.dropout2(feed_forward(self, x)))

    @classmethod
    def like(cls, layer: nn.TransformerEncoderLayer, *, rule: int | Algebra | Rule) -> "TransformerEncoderLayer":
        """A fresh twin of a torch layer: same sizes, options, device, type and mode, new numbers."""
        weight = layer.norm1.weight
        twin = cls(*arguments(layer), device=weight.device, dtype=weight.dtype, rule=rule)
        return twin.train(layer.training)

    def to_torch(self) -> nn.TransformerEncoderLayer:
        """The torch.nn.TransformerEncoderLayer with the same numbers."""
        return with_parts_of(nn.TransformerEncoderLayer(*arguments(self), device="meta"), self)

    def extra_repr(self) -> str:
        """One line for print(model)."""
        return f"norm_first={self.norm_first}" if self.norm_first else ""


class TransformerEncoder(nn.Module):
    """`norm(layers[-1](... layers[0](x)))`: torch's stack of copies of a layer, each with rules of its own.

    Copies start with the same numbers, as torch's do. A rule that is shared stays the one that it is.

    Args:
        encoder_layer: the layer that is copied.
        num_layers: how many copies there are.
        norm: comes last, or None.
        enable_nested_tensor: for `to_torch` alone, as is mask_check: torch's fused kernel, which takes dense weights,
            leaves out hidden positions at the end and gives zeros there; here they are computed like others.
        mask_check: see there.

    Attributes:
        layers: the copies.
        norm: what comes last, or None.

    Examples:
        >>> encoder = TransformerEncoder(TransformerEncoderLayer(64, 8, batch_first=True, rule=4), num_layers=2)
        >>> encoder(torch.zeros(2, 5, 64)).shape
        torch.Size([2, 5, 64])
    """

    __constants__ = ("norm",)

    def __init__(
        self,
        encoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__()
        self.layers = copies(encoder_layer, num_layers)
        self.num_layers, self.norm = num_layers, norm
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def forward(
        self,
        src: Float[Tensor, "*length d_model"],
        mask: Mask | None = None,
        src_key_padding_mask: Mask | None = None,
        is_causal: bool | None = None,
    ) -> Float[Tensor, "*length d_model"]:
        """All layers.

        Args:
            src: the sequences.
            mask: as attn_mask of MultiheadAttention.
            src_key_padding_mask: as key_padding_mask of MultiheadAttention.
            is_causal: a hint that mask is the causal one; where None, it is looked at.
        """
        causal = causal_hint(self.layers, src, mask, is_causal)
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, is_causal=causal)
        return src if self.norm is None else self.norm(src)

    @classmethod
    def like(cls, layer: nn.TransformerEncoder, *, rule: int | Algebra | Rule) -> "TransformerEncoder":
        """A fresh twin of a torch stack, layer by layer: same sizes, options, device, type and mode, new numbers.

        Raises:
            TypeError: the stack has layers other than torch.nn.TransformerEncoderLayer.
        """
        twin = cls(nn.Identity(), 0, fresh_norm(layer.norm), layer.enable_nested_tensor, layer.mask_check)
        twin.layers = twins(layer.layers, nn.TransformerEncoderLayer, TransformerEncoderLayer, rule)
        twin.num_layers = layer.num_layers
        return twin.train(layer.training)

    def to_torch(self) -> nn.TransformerEncoder:
        """The torch.nn.TransformerEncoder with the same numbers."""
        first: Any = dense(self.layers[0]) if self.num_layers else nn.Identity()
        with warnings.catch_warnings():  # torch tells where its fused kernel cannot run
            warnings.simplefilter("ignore", UserWarning)
            stack = nn.TransformerEncoder(first, 0, None, self.enable_nested_tensor, self.mask_check)
        stack.num_layers = self.num_layers
        return with_parts_of(stack, self)
