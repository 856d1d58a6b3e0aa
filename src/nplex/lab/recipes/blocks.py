"""What transformers are made of; plain torch layers, converted afterwards. Each norm stands before its layer."""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Mask = Bool[Tensor, "batch #heads #to _"]
KeysValues = tuple[Float[Tensor, "_ heads _ head"], Float[Tensor, "_ heads _ head"]]  # of the past, or the source
Source = tuple[KeysValues, Mask | None]  # keys and values, and where they are no padding


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
        self, x: Float[Tensor, "batch length width"], mask: Mask | None = None, causal: bool = False,
        source: Source | None = None,
    ) -> Float[Tensor, "batch length width"]:  # fmt: skip
        """`x + attention(norm(x))`, then `x + down(relu(up(norm(x))))`; a CrossBlock looks at its source between."""
        seen = self.attention_norm(x)
        x = x + self.dropout(self.attention(seen, self.attention.keys_values(seen), mask, causal))
        return self.feed(self.look(x, source))

    def extend(
        self, x: Float[Tensor, "batch 1 width"], past: KeysValues | None, source: Source | None = None
    ) -> tuple[Float[Tensor, "batch 1 width"], KeysValues]:
        """One more place after those of `past`: the same as forward with causal=True, and the longer past."""
        seen = self.attention_norm(x)
        new = self.attention.keys_values(seen)
        longer = new if past is None else (torch.cat([past[0], new[0]], 2), torch.cat([past[1], new[1]], 2))
        x = x + self.dropout(self.attention(seen, longer))
        return self.feed(self.look(x, source)), longer

    def look(
        self, x: Float[Tensor, "batch length width"], source: Source | None
    ) -> Float[Tensor, "batch length width"]:
        """`x`, unchanged: this block has no source."""
        return x

    def feed(self, x: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """`x + down(relu(up(norm(x))))`."""
        return x + self.dropout(self.down(F.relu(self.up(self.feed_norm(x)))))


class CrossBlock(Block):
    """Attention to itself, then to the source, then two feed-forward layers."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__(width, heads, feed_forward, dropout)
        self.cross, self.cross_norm = Attention(width, heads), nn.LayerNorm(width)

    def look(
        self, x: Float[Tensor, "batch length width"], source: Source | None
    ) -> Float[Tensor, "batch length width"]:
        """`x + cross(norm(x))`, over the keys and values of the source where it is not padding."""
        if source is None:
            raise ValueError("a CrossBlock needs a source, got None")
        return x + self.dropout(self.cross(self.cross_norm(x), *source))


@dataclass
class Decoding:
    """What is known of texts that are being written.

    Attributes:
        past: keys and values of what is read and written, for each layer; None at first.
        length: how much that is.
        memory: keys and values of the source, for each layer; empty without a source.
        real: where the source is not padding.
    """

    past: list[KeysValues | None]
    length: int = 0
    memory: list[KeysValues] = field(default_factory=list)
    real: Mask | None = None

    def select(self, rows: Int[Tensor, "rows"]) -> "Decoding":
        """The state of some texts, in another order or several times."""
        memory = [(keys[rows], values[rows]) for keys, values in self.memory]
        return replace(self.reorder(rows), memory=memory, real=None if self.real is None else self.real[rows])

    def reorder(self, rows: Int[Tensor, "rows"]) -> "Decoding":
        """As select, where each row stays with its source: only what is written is exchanged."""
        past = [None if pair is None else (pair[0][rows], pair[1][rows]) for pair in self.past]
        return replace(self, past=past)


def sinusoids(longest: int, width: int) -> Float[Tensor, "longest width"]:
    """`sin(t / 10000^(2c / width))` and the cosine beside it.

    Source: Vaswani et al., Attention is all you need (2017), section 3.5.
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(longest)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]
