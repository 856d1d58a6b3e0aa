"""Torch's own transformer, encoder and decoder, with attention and linear layers of nplex in them."""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.nn import init
from nplex.nn.arguments import plain
from nplex.nn.attention import MultiheadAttention
from nplex.nn.linear import Linear
from nplex.nn.rule import Rule
from nplex.nn.sharing import new_like
from nplex.nn.twin import kind_among, rebuilt, to_dense
from nplex.nn.written import RuleLike
from nplex.ops.attention import Mask, is_causal_mask
from nplex.ops.tracing import Leaf

Activation = str | Callable[[Tensor], Tensor]


class _Container(Leaf):
    """One of torch's containers, which computes nothing itself: from torch's, and back to it, part by part."""

    @classmethod
    def like(cls, layer: Any, *, rule: RuleLike) -> Any:
        """A fresh twin of a torch layer or stack: same sizes, options, device, type and mode, new numbers.

        Raises:
            TypeError: it is a stack of layers other than torch.nn's.
        """
        return rebuilt(layer, cls, lambda part: _twin(part, rule))

    def to_torch(self) -> Any:
        """Torch's layer or stack with the same numbers."""
        return rebuilt(self, next(kind for kind in type(self).__mro__ if kind.__module__[:6] == "torch."), to_dense)


class _Layer(_Container):
    """What both layers share: torch's constructor, with our layers in the place of torch's."""

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
        rule: RuleLike,
        method: str = "auto",
    ) -> None:
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)
        torchs: Any = super()
        torchs.__init__(*(sizes := plain(sizes)), "meta", dtype)
        for name, part in list(torchs.named_children()):
            if kind := kind_among(part, (Linear, MultiheadAttention)):
                options = {"rule": new_like(rule), "method": method, "device": device}
                setattr(self, name, kind._like(part, options))
            elif isinstance(part, nn.LayerNorm):
                setattr(self, name, nn.LayerNorm(sizes[0], layer_norm_eps, bias=bias, device=device, dtype=dtype))


class TransformerEncoderLayer(_Layer, nn.TransformerEncoderLayer):
    """`x = norm1(x + attention(x, x, x))`, then `norm2(x + linear2(activation(linear1(x))))`: torch's, and a rule.

    It is torch's layer, with a MultiheadAttention and Linear layers of nplex in it. Torch's fused kernel, which
    reads dense weights, never runs.

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

    Raises:
        ValueError: a size, rule or method is impossible; says what was expected.

    Source: Vaswani et al., Attention Is All You Need (2017), section 3; Zhang et al., Beyond Fully-Connected Layers
    with Quaternions (2021): the PHM-Transformer.

    Examples:
        >>> layer = TransformerEncoderLayer(64, 8, 256, batch_first=True, rule=4)
        >>> layer(torch.zeros(2, 5, 64)).shape, isinstance(layer, nn.TransformerEncoderLayer)
        (torch.Size([2, 5, 64]), True)
    """


class TransformerDecoderLayer(_Layer, nn.TransformerDecoderLayer):
    """`x = norm1(x + attention(x, x, x))`, `norm2(x + attention(x, memory, memory))`, then the linear layers.

    These are `norm3(x + linear2(activation(linear1(x))))`. All arguments are told by TransformerEncoderLayer.

    Examples:
        >>> layer = TransformerDecoderLayer(64, 8, 256, batch_first=True, rule=4)
        >>> layer(torch.zeros(2, 3, 64), torch.zeros(2, 5, 64)).shape
        torch.Size([2, 3, 64])
    """


class TransformerEncoder(_Container, nn.TransformerEncoder):
    """`norm(layers[-1](... layers[0](x)))`: torch's stack of copies of a layer, each with rules of its own.

    Copies start with the same numbers, as torch's do.

    Args:
        encoder_layer: the layer that is copied.
        num_layers: how many copies there are.
        norm: comes last, or None.
        enable_nested_tensor: for `to_torch` alone, as is mask_check: torch's fused kernel, which takes dense weights,
            leaves out hidden positions at the end and gives zeros there; here they are computed like others.
        mask_check: see there.

    Examples:
        >>> encoder = TransformerEncoder(TransformerEncoderLayer(64, 8, batch_first=True, rule=4), num_layers=2)
        >>> encoder(torch.zeros(2, 5, 64)).shape
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        encoder_layer: nn.Module,
        num_layers: int,
        norm: nn.Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        super().__init__(encoder_layer, num_layers, norm, False, mask_check)  # pyright: ignore[reportArgumentType]
        self.enable_nested_tensor = enable_nested_tensor

    def forward(
        self,
        src: Tensor,
        mask: Mask | None = None,
        src_key_padding_mask: Mask | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Torch's forward. Without a hint, a mask that can be looked at is compared with the causal one."""
        return super().forward(src, mask, src_key_padding_mask, _causal_hint(self, src, mask, is_causal))

    @classmethod
    def like(cls, layer: nn.TransformerEncoder, *, rule: RuleLike) -> Any:
        """As that of the layers; without torch's nested tensors."""
        (twin := super().like(layer, rule=rule)).use_nested_tensor = False
        return twin

    def to_torch(self) -> nn.TransformerEncoder:
        """Torch's stack with the same numbers; it uses nested tensors where torch's constructor would."""
        stack = super().to_torch()
        with warnings.catch_warnings():  # torch tells where its fused kernel cannot run
            warnings.simplefilter("ignore", UserWarning)
            first: Any = stack.layers[0] if len(stack.layers) else nn.Identity()
            made = nn.TransformerEncoder(first, 0, None, self.enable_nested_tensor)
        stack.use_nested_tensor = made.use_nested_tensor
        return stack


class TransformerDecoder(_Container, nn.TransformerDecoder):
    """`norm(layers[-1](... layers[0](x, memory), memory))`: torch's stack of copies of a layer, each with own rules.

    Examples:
        >>> decoder = TransformerDecoder(TransformerDecoderLayer(64, 8, batch_first=True, rule=4), num_layers=2)
        >>> decoder(torch.zeros(2, 3, 64), torch.zeros(2, 5, 64)).shape
        torch.Size([2, 3, 64])
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Mask | None = None,
        memory_mask: Mask | None = None,
        tgt_key_padding_mask: Mask | None = None,
        memory_key_padding_mask: Mask | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Torch's forward. Without a hint, a mask that can be looked at is compared with the causal one."""
        hint = _causal_hint(self, tgt, tgt_mask, tgt_is_causal)
        paddings = tgt_key_padding_mask, memory_key_padding_mask
        return super().forward(tgt, memory, tgt_mask, memory_mask, *paddings, hint, memory_is_causal)


class Transformer(_Container, nn.Transformer):
    """`decoder(tgt, encoder(src))`: torch.nn.Transformer with 1/n of the parameters.

    It is torch's, with a TransformerEncoder and a TransformerDecoder of nplex in it. What the arguments mean, torch
    and TransformerEncoderLayer tell. Custom encoders and decoders get first values too, as with torch.

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
        rule: RuleLike,
        method: str = "auto",
    ) -> None:
        nothing: Any = nn.Identity()
        d_model, nhead = plain((d_model, nhead))
        super().__init__(d_model, nhead, custom_encoder=nothing, custom_decoder=nothing, batch_first=batch_first)
        sizes = (d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first, norm_first, bias)
        factory_kwargs: dict[str, Any] = {"device": device, "dtype": dtype}
        if custom_encoder is None:
            layer = TransformerEncoderLayer(*sizes, **factory_kwargs, rule=rule, method=method)
            norm = nn.LayerNorm(d_model, layer_norm_eps, bias=bias, **factory_kwargs)
            custom_encoder = TransformerEncoder(layer, plain(num_encoder_layers), norm)
        if custom_decoder is None:
            layer = TransformerDecoderLayer(*sizes, **factory_kwargs, rule=rule, method=method)
            norm = nn.LayerNorm(d_model, layer_norm_eps, bias=bias, **factory_kwargs)
            custom_decoder = TransformerDecoder(layer, plain(num_decoder_layers), norm)
        self.encoder, self.decoder = custom_encoder, custom_decoder
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
                        init.fill_(parameter, nn.init.xavier_uniform_)

    _reset_parameters = reset_parameters  # torch's own would fill rules and components as if they were weights

    @classmethod
    def like(cls, layer: nn.Transformer, *, rule: RuleLike) -> Any:
        """As that of the layers; a custom encoder or decoder that is not torch's is copied."""
        (twin := super().like(layer, rule=rule)).reset_parameters()
        return twin


def _twin(part: nn.Module, rule: RuleLike) -> nn.Module:
    """A fresh one of ours where there is one, each layer of a list, or else a copy with first values."""
    ours = (TransformerEncoder, TransformerDecoder, TransformerEncoderLayer, TransformerDecoderLayer)
    if kind := kind_among(part, (Linear, MultiheadAttention, *ours)):
        return kind.like(part, rule=new_like(rule))
    if isinstance(part, nn.ModuleList):
        for layer in part:
            if not kind_among(layer, ours[2:]):
                raise TypeError(f"only a stack of torch.nn's own layers has a twin, got {type(layer).__name__}")
        return nn.ModuleList(_twin(layer, rule) for layer in part).train(part.training)
    copied: Any = copy.deepcopy(part)
    if hasattr(copied, "reset_parameters"):
        copied.reset_parameters()
    return copied


def _causal_hint(stack: Any, x: Tensor, mask: Mask | None, given: bool | None) -> bool:
    """The hint that was given, or else whether the mask is the causal one for x; False where it cannot be read."""
    if given is not None or mask is None:
        return bool(given)
    batch_first = stack.layers[0].self_attn.batch_first
    return is_causal_mask(mask, x.shape[-2] if batch_first or x.ndim == 2 else x.shape[0])
