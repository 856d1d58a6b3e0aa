"""The decoder of a transformer whose attention and linear layers have 1/n of the parameters."""

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
    feed_forward,
    fresh_norm,
    twins,
    with_parts_of,
)
from nplex.ops.attention import Mask


class TransformerDecoderLayer(nn.Module):
    """`x = norm1(x + attention(x, x, x))`, `norm2(x + attention(x, memory, memory))`, then the linear layers.

    These are `norm3(x + linear2(activation(linear1(x))))`. All arguments are told by TransformerEncoderLayer.

    Shape:
        target `(length, batch, d_model)`, memory `(source, batch, d_model)`, batch first where asked, or without
        batch; output as target.

    Args:
        d_model: as in TransformerEncoderLayer, as is all that follows.
        nhead: the number of heads.
        dim_feedforward: width between the linear layers.
        dropout: the share of numbers set to zero in training.
        activation: "relu", "gelu", a function or a module.
        layer_norm_eps: added to the variance by the norms.
        batch_first: whether the batch is the first dimension.
        norm_first: whether the norms come first.
        bias: whether there are biases.
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n, an Algebra or a Rule, of which each part gets a fresh one; a shared one is used itself.
        method: how to compute the products.

    Attributes:
        self_attn: a MultiheadAttention of the target with itself.
        multihead_attn: a MultiheadAttention of the target with the memory.
        linear1: a Linear, as linear2.
        norm1: torch's LayerNorm, as norm2 and norm3.

    Raises:
        ValueError: a size, rule, activation or method is impossible; says what was expected.

    Source: as TransformerEncoderLayer.

    Examples:
        >>> layer = TransformerDecoderLayer(64, 8, 256, batch_first=True, rule=4)
        >>> layer(torch.zeros(2, 3, 64), torch.zeros(2, 5, 64)).shape
        torch.Size([2, 3, 64])
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
        self.multihead_attn = attention(d_model, nhead, rule=fresh_rule(rule))
        self.linear1 = linear(d_model, dim_feedforward, rule=fresh_rule(rule))
        self.dropout = nn.Dropout(dropout)
        self.linear2 = linear(dim_feedforward, d_model, rule=fresh_rule(rule))
        self.norm_first = norm_first
        self.norm1, self.norm2, self.norm3 = norm(d_model), norm(d_model), norm(d_model)
        self.dropout1, self.dropout2, self.dropout3 = (nn.Dropout(dropout) for _ in range(3))
        self.activation = as_activation(activation)

    def forward(
        self,
        tgt: Float[Tensor, "*length d_model"],
        memory: Float[Tensor, "*source d_model"],
        tgt_mask: Mask | None = None,
        memory_mask: Mask | None = None,
        tgt_key_padding_mask: Mask | None = None,
        memory_key_padding_mask: Mask | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Float[Tensor, "*length d_model"]:
        """One layer of the decoder.

        Args:
            tgt: the sequences.
            memory: what the encoder made.
            tgt_mask: as attn_mask of MultiheadAttention, target with itself.
            memory_mask: the same, target with memory.
            tgt_key_padding_mask: as key_padding_mask of MultiheadAttention, for the target.
            memory_key_padding_mask: the same, for the memory.
            tgt_is_causal: a hint that tgt_mask is the causal one.
            memory_is_causal: a hint that memory_mask is the causal one.

        Raises:
            ValueError: see MultiheadAttention.
        """
        x, masks = tgt, (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        memory_masks = (memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            y = self.norm1(x)
            x = x + self.dropout1(attend(self.self_attn, y, y, *masks))
            x = x + self.dropout2(attend(self.multihead_attn, self.norm2(x), memory, *memory_masks))
            return x + self.dropout3(feed_forward(self, self.norm3(x)))
        x = self.norm1(x + self.dropout1(attend(self.self_attn, x, x, *masks)))
        x = self.norm2(x + self.dropout2(attend(self.multihead_attn, x, memory, *memory_masks)))
        return self.norm3(x + self.dropout3(feed_forward(self, x)))

    @classmethod
    def like(cls, layer: nn.TransformerDecoderLayer, *, rule: int | Algebra | Rule) -> "TransformerDecoderLayer":
        """A fresh twin of a torch layer: same sizes, options, device, type and mode, new numbers."""
        weight = layer.norm1.weight
        twin = cls(*arguments(layer), device=weight.device, dtype=weight.dtype, rule=rule)
        return twin.train(layer.training)

    def to_torch(self) -> nn.TransformerDecoderLayer:
        """The torch.nn.TransformerDecoderLayer with the same numbers."""
        return with_parts_of(nn.TransformerDecoderLayer(*arguments(self), device="meta"), self)

    def extra_repr(self) -> str:
        """One line for print(model)."""
        return f"norm_first={self.norm_first}" if self.norm_first else ""


class TransformerDecoder(nn.Module):
    """`norm(layers[-1](... layers[0](x, memory), memory))`: torch's stack of copies of a layer, each with own rules.

    Copies start with the same numbers, as torch's do. A rule that is shared stays the one that it is.

    Args:
        decoder_layer: the layer that is copied.
        num_layers: how many copies there are.
        norm: comes last, or None.

    Attributes:
        layers: the copies.
        norm: what comes last, or None.

    Examples:
        >>> decoder = TransformerDecoder(TransformerDecoderLayer(64, 8, batch_first=True, rule=4), num_layers=2)
        >>> decoder(torch.zeros(2, 3, 64), torch.zeros(2, 5, 64)).shape
        torch.Size([2, 3, 64])
    """

    __constants__ = ("norm",)

    def __init__(self, decoder_layer: nn.Module, num_layers: int, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.layers = copies(decoder_layer, num_layers)
        self.num_layers, self.norm = num_layers, norm

    def forward(
        self,
        tgt: Float[Tensor, "*length d_model"],
        memory: Float[Tensor, "*source d_model"],
        tgt_mask: Mask | None = None,
        memory_mask: Mask | None = None,
        tgt_key_padding_mask: Mask | None = None,
        memory_key_padding_mask: Mask | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Float[Tensor, "*length d_model"]:
        """All layers.

        Args:
            tgt: the sequences.
            memory: what the encoder made.
            tgt_mask: as in TransformerDecoderLayer, as are those that follow.
            memory_mask: for the target with the memory.
            tgt_key_padding_mask: for the target.
            memory_key_padding_mask: for the memory.
            tgt_is_causal: a hint that tgt_mask is the causal one; where None, it is looked at.
            memory_is_causal: a hint that memory_mask is the causal one.
        """
        causal = causal_hint(self.layers, tgt, tgt_mask, tgt_is_causal)
        for layer in self.layers:
            tgt = layer(
                tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask, tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
            )  # fmt: skip
        return tgt if self.norm is None else self.norm(tgt)

    @classmethod
    def like(cls, layer: nn.TransformerDecoder, *, rule: int | Algebra | Rule) -> "TransformerDecoder":
        """A fresh twin of a torch stack, layer by layer: same sizes, options, device, type and mode, new numbers.

        Raises:
            TypeError: the stack has layers other than torch.nn.TransformerDecoderLayer.
        """
        twin = cls(nn.Identity(), 0, fresh_norm(layer.norm))
        twin.layers = twins(layer.layers, nn.TransformerDecoderLayer, TransformerDecoderLayer, rule)
        twin.num_layers = layer.num_layers
        return twin.train(layer.training)

    def to_torch(self) -> nn.TransformerDecoder:
        """The torch.nn.TransformerDecoder with the same numbers."""
        stack = nn.TransformerDecoder(nn.Identity(), 0)  # pyright: ignore[reportArgumentType] - no copy is made
        stack.num_layers = self.num_layers
        return with_parts_of(stack, self)
