"""What the layers and stacks of a transformer share."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import Algebra
from nplex.nn.rule import Rule
from nplex.ops.attention import Mask, is_causal_mask

Activation = str | Callable[[Tensor], Tensor]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


def as_activation(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function that a name stands for; a function or module stays itself.

    Raises:
        ValueError: no such name.
    """
    if not isinstance(activation, str):
        return activation
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be relu, gelu, a function or a module, got {activation!r}")
    return _ACTIVATIONS[activation]


def with_parts_of(layer: Any, ours: nn.Module) -> Any:
    """A torch layer with the parts of ours, each one torch's with the same numbers, and its mode."""
    for name, part in ours.named_children():
        setattr(layer, name, dense(part))
    layer.training = ours.training
    return layer


def dense(module: nn.Module) -> nn.Module:
    """Torch's module with the same numbers: what ours makes itself, part by part in a list, of others a copy."""
    if isinstance(module, nn.ModuleList):
        parts = nn.ModuleList(map(dense, module))
        parts.training = module.training
        return parts
    make = getattr(module, "to_torch", None)
    return copy.deepcopy(module) if make is None else make()


def attend(
    attention: nn.Module,
    x: Float[Tensor, "*length d_model"],
    memory: Float[Tensor, "*source d_model"],
    attn_mask: Mask | None,
    key_padding_mask: Mask | None,
    is_causal: bool,
) -> Float[Tensor, "*length d_model"]:
    """What x sees of the memory."""
    return attention(
        x, memory, memory, attn_mask=attn_mask, key_padding_mask=key_padding_mask, need_weights=False,
        is_causal=is_causal,
    )[0]  # fmt: skip


def feed_forward(layer: Any, x: Float[Tensor, "*length d_model"]) -> Float[Tensor, "*length d_model"]:
    """`linear2(dropout(activation(linear1(x))))`."""
    return layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))


def arguments(layer: Any) -> tuple[Any, ...]:
    """What a layer of either kind, ours or torch's, was made with: the arguments up to bias."""
    return (
        layer.self_attn.embed_dim, layer.self_attn.num_heads, layer.linear1.out_features, layer.dropout.p,
        copy.deepcopy(layer.activation), layer.norm1.eps, layer.self_attn.batch_first, layer.norm_first,
        layer.linear1.bias is not None,
    )  # fmt: skip


def copies(layer: nn.Module, number: int) -> nn.ModuleList:
    """Copies of a layer with the same numbers; rules that it owns are copied too, shared ones stay what they are."""
    return nn.ModuleList(copy.deepcopy(layer) for _ in range(number))


def twins(
    layers: Iterable[nn.Module], torchs: type[nn.Module], ours: Any, rule: int | Algebra | Rule
) -> nn.ModuleList:
    """A fresh twin of each of torch's layers.

    Raises:
        TypeError: a layer is of another class.
    """
    made = []
    for layer in layers:
        if not isinstance(layer, torchs):
            raise TypeError(f"only a stack of torch.nn.{torchs.__name__} has a twin, got {type(layer).__name__}")
        made.append(ours.like(layer, rule=rule))
    return nn.ModuleList(made)


def fresh_norm(norm: nn.Module | None) -> nn.Module | None:
    """A copy with first values."""
    copied: Any = copy.deepcopy(norm)
    if hasattr(copied, "reset_parameters"):
        copied.reset_parameters()
    return copied


def causal_hint(layers: nn.ModuleList, x: Tensor, mask: Mask | None, given: bool | None) -> bool:
    """The hint that was given, or else whether the mask is the causal one for x."""
    if given is not None or mask is None:
        return bool(given)
    first: Any = layers[0]
    return is_causal_mask(mask, x.shape[-2] if first.self_attn.batch_first or x.ndim == 2 else x.shape[0])
