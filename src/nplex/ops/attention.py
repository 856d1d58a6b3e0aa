"""Attention between queries, keys and values that are split into heads, and masks as torch's attention reads them."""

import contextlib
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nplex.ops.tracing import is_eager, is_transformed

Mask = Bool[Tensor, "..."] | Float[Tensor, "..."]


def attend(
    query: Float[Tensor, "batch heads length d"],
    key: Float[Tensor, "batch heads source d"],
    value: Float[Tensor, "batch heads source d"],
    mask: Float[Tensor, "#batch #heads #length source"] | None = None,
    *,
    dropout: float = 0.0,
    causal: bool = False,
    need_weights: bool = False,
) -> tuple[Float[Tensor, "batch heads length d"], Float[Tensor, "batch heads length source"] | None]:
    """`softmax(query key^T / sqrt(d) + mask) value`, and the softmax where its weights are needed.

    Args:
        query: what asks.
        key: what is compared with it.
        value: what is summed.
        mask: added to the scores; -inf hides a position.
        dropout: the share of weights set to zero; the weights returned are those after it, as torch's.
        causal: that the mask is the causal one, which then need not be given; not together with need_weights.
        need_weights: whether the weights are returned; without them torch's fused kernel runs.

    Source: Vaswani et al., Attention Is All You Need (2017), equation (1).
    """
    if not need_weights:
        with sdpa_kernel(SDPBackend.MATH) if is_transformed() else contextlib.nullcontext():
            return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal), None
    scores = torch.matmul(query * math.sqrt(1 / query.shape[-1]), key.transpose(-1, -2))
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.matmul(weights, value), weights


def merge_masks(
    attn_mask: Mask | None, key_padding_mask: Mask | None, *, batch: int, heads: int, dtype: torch.dtype
) -> Float[Tensor, "#batch #heads #length source"] | None:
    """The sum of both masks, to be added to the scores; a bool mask hides where it is True.

    Args:
        attn_mask: length x source, or (batch heads) x length x source.
        key_padding_mask: batch x source; source for one sequence without a batch.
        batch: the number of sequences.
        heads: the number of heads.
        dtype: the type of the scores.
    """
    mask = None
    if attn_mask is not None:
        mask = additive(attn_mask, dtype)
        mask = mask.reshape(1 if mask.ndim == 2 else batch, 1 if mask.ndim == 2 else heads, *mask.shape[-2:])
    if key_padding_mask is not None:
        padding = additive(key_padding_mask, dtype).reshape(batch, 1, 1, key_padding_mask.shape[-1])
        mask = padding if mask is None else mask + padding
    return mask


def append(
    x: Float[Tensor, "batch source d"],
    bias: Float[Tensor, "1 1 d"] | None,
    mask: Float[Tensor, "#batch #heads #length source"] | None,
    *,
    zero: bool,
) -> tuple[Float[Tensor, "batch longer d"], Float[Tensor, "#batch #heads #length longer"] | None]:
    """Each sequence of keys or values, then the bias, then zeros, where there are such; no mask hides those."""
    if bias is not None:
        x = torch.cat([x, bias.to(x.dtype).expand(x.shape[0], -1, -1)], 1)
    if zero:
        x = F.pad(x, (0, 0, 0, 1))
    appended = (bias is not None) + zero
    return x, F.pad(mask, (0, appended)) if mask is not None and appended else mask


def additive(mask: Mask, dtype: torch.dtype) -> Float[Tensor, "..."]:
    """-inf where a bool mask is True and 0 elsewhere; a mask of numbers is what it is."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
    return mask.to(dtype)


def is_causal_mask(mask: Mask | None, length: int) -> bool:
    """Whether it is the causal mask of this length: -inf above the diagonal, 0 on and below it.

    False where numbers cannot be looked at: on the meta device, and while torch.compile, export or torch.func look
    on. The mask itself then gives the same result.
    """
    if mask is None or mask.shape != (length, length) or mask.is_meta or not is_eager(mask):
        return False
    numbers = additive(mask, torch.float32)
    return torch.equal(numbers, torch.full_like(numbers, -math.inf).triu(1))


def check_inputs(query: Tensor, key: Tensor, value: Tensor, widths: tuple[int, int, int], batch_first: bool) -> None:
    """Refuses queries, keys and values that do not fit together.

    Raises:
        ValueError: names the tensor, what was expected and its shape.
    """
    if query.ndim not in (2, 3):
        raise ValueError(f"query must have 2 dimensions, or 3 with a batch, got shape {tuple(query.shape)}")
    for name, x, width in zip(("query", "key", "value"), (query, key, value), widths, strict=True):
        if x.ndim != query.ndim:
            raise ValueError(f"{name} must have {query.ndim} dimensions, as query, got shape {tuple(x.shape)}")
        if x.shape[-1] != width:
            raise ValueError(f"{name} must have {width} numbers in its last dimension, got shape {tuple(x.shape)}")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"key and value must have the same length and batch, got shapes {tuple(key.shape)} and "
            f"{tuple(value.shape)}"
        )
    axis = 0 if batch_first else 1
    if query.ndim == 3 and query.shape[axis] != key.shape[axis]:
        raise ValueError(
            f"query and key must have the same batch, got {query.shape[axis]} and {key.shape[axis]} in dimension "
            f"{axis} (batch_first={batch_first})"
        )


def check_masks(
    attn_mask: Mask | None, key_padding_mask: Mask | None, sizes: tuple[int, int, int, int], batched: bool
) -> None:
    """Refuses masks that do not fit scores of sizes (batch, heads, length, source).

    Raises:
        ValueError: names the mask, what was expected and its shape.
    """
    batch, heads, length, source = sizes
    expected = {
        "attn_mask": (attn_mask, [(length, source), (batch * heads, length, source)]),
        "key_padding_mask": (key_padding_mask, [(batch, source) if batched else (source,)]),
    }
    for name, (mask, shapes) in expected.items():
        if mask is None:
            continue
        if mask.dtype != torch.bool and not mask.is_floating_point():
            raise ValueError(f"{name} must be bool, True where hidden, or numbers to be added, got {mask.dtype}")
        if all(tuple(mask.shape) != shape for shape in shapes):
            wanted = " or ".join(map(str, shapes))
            raise ValueError(f"{name} must have shape {wanted}, got {tuple(mask.shape)}")
