"""A small transformer encoder that classifies a line of words; plain torch layers, converted afterwards."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nplex.lab.recipes.blocks import Block
from nplex.lab.text import PAD


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
        real = (words != PAD)[:, None, None, :]
        x = self.dropout(self.words(words) + self.places(torch.arange(words.shape[1], device=words.device)))
        for block in self.blocks:
            x = block(x, real)
        return self.classify(self.norm(x[:, 0]))
