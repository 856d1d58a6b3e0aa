"""What transformers are made of; plain torch layers, converted afterwards. Each norm stands before its layer."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Mask = Bool[Tensor, "batch #heads #to _"]
KeysValues = tuple[Float[Tensor, "_ heads _ head"], Float[Tensor, "_ heads _ head"]]  # of the past, or the source


class Attention(nn.Module):
    """Multi-head attention with four projections of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def keys_values(self, memory: Float[Tensor, "batch length width"]) -> KeysValues:
        """What is looked at, and what is taken from it."""
        return self._split(self.key(memory)), self._split(self.value(memory))

    def forward(
        self,
        x: Float[Tensor, "batch to width"],
        looked_at: KeysValues,
        mask: Mask | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "batch to width"]:  # fmt: skip
        """`out(softmax(q k^T / sqrt(width / heads)) v)`; nothing is looked at where the mask is False."""
        keys, values = looked_at
        q = self._split(self.query(x))
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(-2))

    def _split(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch heads length head"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention to itself, then two feed-forward layers, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length width"], mask: Mask | None = None, causal: bool = False
    ) -> Float[Tensor, "batch length width"]:
        """`x + attention(norm(x))`, then `x + down(relu(up(norm(x))))`."""
        seen = self.attention_norm(x)
        x = x + self.dropout(self.attention(seen, self.attention.keys_values(seen), mask, causal))
        return self.feed(x)

    def feed(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """`x + down(relu(up(norm(x))))`."""
        return x + self.dropout(self.down(F.relu(self.up(self.feed_norm(x)))))

    def extend(
        self, x: Float[Tensor, "batch 1 width"], past: KeysValues | None
    ) -> tuple[Float[Tensor, "batch 1 width"], KeysValues]:
        """One more place after those of `past`: the same as forward with causal=True, and the longer past."""
        x, past = attend_past(self, x, past)
        return self.feed(x), past


class CrossBlock(Block):
    """Attention to itself, then to the source, then two feed-forward layers."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__(width, heads, feed_forward, dropout)
        self.cross, self.cross_norm = Attention(width, heads), nn.LayerNorm(width)

    def decode(
        self, x: Float[Tensor, "batch length width"], memory: KeysValues, real: Mask
    ) -> Float[Tensor, "batch length width"]:
        """All places at once, each seeing those before it, and the source."""
        seen = self.attention_norm(x)
        x = x + self.dropout(self.attention(seen, self.attention.keys_values(seen), causal=True))
        x = x + self.dropout(self.cross(self.cross_norm(x), memory, real))
        return self.feed(x)

    def decode_one(
        self, x: Float[Tensor, "batch 1 width"], past: KeysValues | None, memory: KeysValues, real: Mask
    ) -> tuple[Float[Tensor, "batch 1 width"], KeysValues]:
        """One more place: the same as decode, and the longer past."""
        x, past = attend_past(self, x, past)
        x = x + self.dropout(self.cross(self.cross_norm(x), memory, real))
        return self.feed(x), past


def attend_past(
    block: Block, x: Float[Tensor, "batch 1 width"], past: KeysValues | None
) -> tuple[Float[Tensor, "batch 1 width"], KeysValues]:
    """`x + attention(norm(x))` of one place, which sees the past and itself."""
    seen = block.attention_norm(x)
    new = block.attention.keys_values(seen)
    longer = new if past is None else (torch.cat([past[0], new[0]], 2), torch.cat([past[1], new[1]], 2))
    return x + block.dropout(block.attention(seen, longer)), longer


def selected(pair: KeysValues | None, rows: Int[Tensor, "rows"]) -> KeysValues | None:
    """The past of some texts, in another order or several times."""
    return None if pair is None else (pair[0][rows], pair[1][rows])


def sinusoids(longest: int, width: int) -> Float[Tensor, "longest width"]:
    """`sin(t / 10000^(2c / width))` and the cosine beside it.

    Source: Vaswani et al., Attention is all you need (2017), section 3.5.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(longest)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
