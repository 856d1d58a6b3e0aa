"""The transformer, encoder and decoder, with 1/n of the parameters."""

import copy
import math
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import Algebra
from nplex.nn import init
from nplex.nn.attention import MultiheadAttention
from nplex.nn.decoder import TransformerDecoder, TransformerDecoderLayer
from nplex.nn.encoder import TransformerEncoder, TransformerEncoderLayer
from nplex.nn.linear import Linear
from nplex.nn.rule import Rule
from nplex.nn.transformer_parts import Activation, with_parts_of
from nplex.ops.attention import Mask, causal_mask


class Transformer(nn.Module):
    """`decoder(tgt, encoder(src))`: torch.nn.Transformer with 1/n of the parameters.

    Shape:
        src `(source, batch, d_model)`, tgt `(length, batch, d_model)`, batch first where asked, or without batch;
        output as tgt.

    Args:
        d_model: width of inputs and output.
        nhead: the number of heads; divides d_model.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dim_feedforward: width between the linear layers.
        dropout: the share of numbers set to zero in training.
        activation: "relu", "gelu", a function or a module.
        custom_encoder: in the place of the encoder; its matrices get first values too, as with torch.
        custom_decoder: in the place of the decoder.
        layer_norm_eps: added to the variance by the norms.
        batch_first: whether the batch is the first dimension.
        norm_first: whether the norms come first in every layer.
        bias: whether attention, linear layers and norms have biases.
        device: as in torch.nn.
        dtype: as in torch.nn.
        rule: n for learned rules, an Algebra for fixed ones, or a Rule. Each attention and linear layer gets a fresh
            rule of its own like it; only a rule that is shared (`nplex.nn.share`) is used itself.
        method: how to compute the products; "auto" plans it for each input size, see nplex.ops.plan_for.

    Attributes:
        encoder: a TransformerEncoder, or what was given.
        decoder: a TransformerDecoder, or what was given.

    Raises:
        ValueError: a size, rule, activation or method is impossible; says what was expected.

    Source: Vaswani et al., Attention Is All You Need (2017); Zhang et al., Beyond Fully-Connected Layers with
    Quaternions (2021): the PHM-Transformer.

    Examples:
        >>> model = Transformer(64, 8, 2, 2, 256, batch_first=True, rule=4)
        >>> model(torch.zeros(2, 5, 64), torch.zeros(2, 3, 64)).shape
        torch.Size([2, 3, 64])
    """

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Any | None = None,
        custom_decoder: Any | None = None,
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
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first)
        place: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        norm = partial(nn.LayerNorm, d_model, eps=layer_norm_eps, **place)
        if custom_encoder is None:
            encoder_layer = TransformerEncoderLayer(*sizes, **place, rule=rule, method=method)
            custom_encoder = TransformerEncoder(encoder_layer, num_encoder_layers, norm())
        if custom_decoder is None:
            decoder_layer = TransformerDecoderLayer(*sizes, **place, rule=rule, method=method)
            custom_decoder = TransformerDecoder(decoder_layer, num_decoder_layers, norm())
        self.encoder, self.decoder = custom_encoder, custom_decoder
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's first values for all matrices in it: W of `U(-b, b)` with `b = sqrt(6 / (d_in + d_out))`.

        These are other than those of the parts alone; what resets all modules has to call this last.
        """
        for module in self.modules():
            if isinstance(module, Linear):
                bound = math.sqrt(6 / (module.in_features + module.out_features))
                init.components_(module.components, rule_norm=module.rule.initial_norm, bound=bound)
            elif isinstance(module, MultiheadAttention):
                module.reset_projections()
            elif not isinstance(module, Rule) and not isinstance(getattr(module, "rule", None), Rule):
                for parameter in module.parameters(recurse=False):
                    if parameter.ndim > 1:
                        nn.init.xavier_uniform_(parameter)

    def forward(  # noqa: PLR0913 - torch's own signature
        self,
        src: Float[Tensor, "*source d_src"],
        tgt: Float[Tensor, "*length d_tgt"],
        src_mask: Mask | None = None,
        tgt_mask: Mask | None = None,
        memory_mask: Mask | None = None,
        src_key_padding_mask: Mask | None = None,
        tgt_key_padding_mask: Mask | None = None,
        memory_key_padding_mask: Mask | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Float[Tensor, "*length d_tgt"]:
        """The decoder's output for tgt, which sees what the encoder makes of src.

        Args:
            src: the sequences for the encoder.
            tgt: the sequences for the decoder.
            src_mask: as attn_mask of MultiheadAttention, in the encoder.
            tgt_mask: the same, in the decoder.
            memory_mask: the same, in the decoder, for the encoder's output.
            src_key_padding_mask: as key_padding_mask of MultiheadAttention, in the encoder.
            tgt_key_padding_mask: the same, in the decoder.
            memory_key_padding_mask: the same, in the decoder, for the encoder's output.
            src_is_causal: a hint that src_mask is the causal one; where None, it is looked at.
            tgt_is_causal: the same of tgt_mask.
            memory_is_causal: a hint that memory_mask is the causal one.

        Raises:
            ValueError: src and tgt do not fit together or are not d_model wide.
        """
        place = 0 if self.batch_first else 1
        if src.ndim == 3 and tgt.ndim == 3 and src.shape[place] != tgt.shape[place]:
            raise ValueError(
                f"src and tgt must have the same batch, got {src.shape[place]} and {tgt.shape[place]} in dimension "
                f"{place} (batch_first={self.batch_first})"
            )
        for name, x in (("src", src), ("tgt", tgt)):
            if x.shape[-1] != self.d_model:
                raise ValueError(
                    f"{name} must have {self.d_model} numbers in its last dimension, got shape {tuple(x.shape)}"
                )
        memory = self.encoder(src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal)
        return self.decoder(
            tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask, tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )  # fmt: skip

    @staticmethod
    def generate_square_subsequent_mask(
        sz: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "{sz} {sz}"]:
        """-inf above the diagonal, 0 on and below it: position i sees positions up to i."""
        return causal_mask(sz, device, dtype)

    @classmethod
    def like(cls, layer: nn.Transformer, *, rule: int | Algebra | Rule) -> "Transformer":
        """A fresh twin of a torch transformer: same sizes, options, device, type and mode, new numbers.

        A custom encoder or decoder that is not torch's own is copied.

        Raises:
            TypeError: a stack has layers that are not torch's own.
        """
        stacks: list[Any] = [copy.deepcopy(stack) for stack in (layer.encoder, layer.decoder)]
        if isinstance(layer.encoder, nn.TransformerEncoder):
            stacks[0] = TransformerEncoder.like(layer.encoder, rule=rule)
        if isinstance(layer.decoder, nn.TransformerDecoder):
            stacks[1] = TransformerDecoder.like(layer.decoder, rule=rule)
        twin = cls(
            layer.d_model, layer.nhead, custom_encoder=stacks[0], custom_decoder=stacks[1],
            batch_first=layer.batch_first, rule=rule,
        )  # fmt: skip
        return twin.train(layer.training)

    def to_torch(self) -> nn.Transformer:
        """The torch.nn.Transformer with the same numbers."""
        none = nn.Identity()
        layer = nn.Transformer(
            self.d_model, self.nhead, custom_encoder=none, custom_decoder=none, batch_first=self.batch_first
        )
        return with_parts_of(layer, self)
