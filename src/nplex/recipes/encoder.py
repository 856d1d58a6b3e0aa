"""A small transformer encoder that classifies a line of words; plain torch layers, converted afterwards."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.text import PAD


class Attention(nn.Module):
    """Multi-head self-attention with four projections of its own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, x: Float[Tensor, "batch length width"], real: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """`out(softmax(q k^T / sqrt(width / heads)) v)`; padding is not looked at."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None, :])
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    """Attention, then two feed-forward layers, each normalised before and added to its input."""

    def __init__(self, width: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "batch length width"], real: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, "batch length width"]:
        """`x + attention(norm(x))`, then `x + down(relu(up(norm(x))))`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), real))
        return x + self.dropout(self.down(F.relu(self.up(self.feed_norm(x)))))


class Encoder(nn.Module):
    """Words to classes: embeddings, blocks, and a classifier on the state of the first place."""

    def __init__(
        self, words: int, classes: int, *, width: int, heads: int, feed_forward: int, layers: int, dropout: float,
        longest: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.words, self.places = nn.Embedding(words, width, padding_idx=PAD), nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(Block(width, heads, feed_forward, dropout) for _ in range(layers))
        self.norm, self.classify = nn.LayerNorm(width), nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=width**-0.5)

    def forward(self, words: Int[Tensor, "batch length"]) -> Float[Tensor, "batch classes"]:
        """Logits from the state of the first word, which is the query."""
        real = words != PAD
        x = self.dropout(self.words(words) + self.places(torch.arange(words.shape[1], device=words.device)))
        for block in self.blocks:
            x = block(x, real)
        return self.classify(self.norm(x[:, 0]))
