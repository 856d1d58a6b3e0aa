"""Models that choose a label: a transformer encoder, and an LSTM for pairs; converted afterwards."""

import torch
from jaxtyping import Bool, Float, Int
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


class PairClassifier(nn.Module):
    """Words to classes: embeddings, one LSTM for both sentences, max and mean of its states, a head of two layers.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), section 4.1.
    """

    def __init__(self, words: int, classes: int, *, embedding: int, width: int, dropout: float) -> None:
        super().__init__()
        self.words = nn.Embedding(words, embedding, padding_idx=PAD)
        self.encoder = nn.LSTM(embedding, width, batch_first=True)
        self.hidden, self.classify = nn.Linear(4 * width, width), nn.Linear(width, classes)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.words.weight, std=0.1)

    def forward(
        self, first: Int[Tensor, "batch length"], second: Int[Tensor, "batch other_length"]
    ) -> Float[Tensor, "batch classes"]:
        """`classify(relu(hidden([max p, mean p, max q, mean q])))`, the states p of the first and q of the second."""
        longest = max(first.shape[1], second.shape[1])
        both = torch.cat([_widened(first, longest), _widened(second, longest)])
        states, _ = self.encoder(self.dropout(self.words(both)))  # padding stands last: it changes no state before it
        pooled = torch.cat(_pooled(states, both != PAD), -1)
        pair = self.dropout(torch.cat(pooled.chunk(2), -1))
        return self.classify(self.dropout(torch.relu(self.hidden(pair))))


def _widened(words: Int[Tensor, "batch length"], longest: int) -> Int[Tensor, "batch longest"]:
    return nn.functional.pad(words, (0, longest - words.shape[1]), value=PAD)


def _pooled(
    states: Float[Tensor, "batch length width"], real: Bool[Tensor, "batch length"]
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "batch width"]]:
    """The largest and the mean of each state, over real words."""
    mask = real[..., None]
    largest = states.masked_fill(~mask, -torch.inf).amax(1)
    return largest, (states * mask).sum(1) / mask.sum(1)
