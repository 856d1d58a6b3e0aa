"""An encoder-decoder transformer; plain torch layers, converted afterwards."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.lab.recipes.blocks import Block, CrossBlock, Decoding, sinusoids
from nplex.lab.text import PAD


class EncoderDecoder(nn.Module):
    """Subwords to subwords: one table for source, target and output; norms before layers; sinusoids for places.

    Source: Vaswani et al., Attention is all you need (2017).
    """

    def __init__(
        self, words: int, *, width: int, heads: int, feed_forward: int, layers: int, dropout: float, longest: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=PAD)
        self.encoder = nn.ModuleList(Block(width, heads, feed_forward, dropout) for _ in range(layers))
        self.decoder = nn.ModuleList(CrossBlock(width, heads, feed_forward, dropout) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("places", sinusoids(longest, width), persistent=False)
        nn.init.normal_(self.words.weight, std=width**-0.5)
        with torch.no_grad():
            self.words.weight[PAD] = 0

    def forward(
        self, source: Int[Tensor, "batch length"], target: Int[Tensor, "batch other_length"], smoothing: float
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """The cross-entropy of the target after its first place, summed, and of how many subwords.

        With smoothing s the truth is `1 - s` at the right subword and s spread over all.
        """
        wanted, states = target[:, 1:], self.states(source, target[:, :-1])
        real = wanted != PAD
        if not real.is_cuda:  # logits of padding are not made; a GPU would have to be waited for
            states, wanted = states[real], wanted[real]
        logits, options = self.logits(states).flatten(0, -2), {"ignore_index": PAD, "label_smoothing": smoothing}
        return F.cross_entropy(logits, wanted.flatten(), reduction="sum", **options), real.sum()

    def states(
        self, source: Int[Tensor, "batch length"], target: Int[Tensor, "batch other_length"]
    ) -> Float[Tensor, "batch other_length width"]:
        """The states from which the word after each place of the target is told: `logits` of them."""
        memory, real = self._encode(source)
        x = self._embed(target, 0)
        for block in self._decoder():
            x = block(x, causal=True, source=(block.cross.keys_values(memory), real))
        return self.decoder_norm(x)

    def logits(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch words"]:
        """Of each subword, by the table that it is read with."""
        return F.linear(states, self.words.weight)

    def start(self, source: Int[Tensor, "batch length"]) -> Decoding:
        """The state before the first word is written."""
        memory, real = self._encode(source)
        looked_at = [block.cross.keys_values(memory) for block in self._decoder()]
        return Decoding([None] * len(self.decoder), memory=looked_at, real=real)

    def step(self, tokens: Int[Tensor, "batch"], state: Decoding) -> Float[Tensor, "batch words"]:
        """Logits of the word after `tokens`, which are added to the state."""
        x = self._embed(tokens[:, None], state.length)
        for number, block in enumerate(self._decoder()):
            x, state.past[number] = block.extend(x, state.past[number], (state.memory[number], state.real))
        state.length += 1
        return self.logits(self.decoder_norm(x[:, 0]))

    def _decoder(self) -> Iterator[CrossBlock]:
        yield from self.decoder  # pyright: ignore[reportReturnType] - that is what it holds

    def _encode(
        self, source: Int[Tensor, "batch length"]
    ) -> tuple[Float[Tensor, "batch length width"], Bool[Tensor, "batch 1 1 length"]]:
        """The source's states, and where it is not padding."""
        real = (source != PAD)[:, None, None, :]
        x = self._embed(source, 0)
        for block in self.encoder:
            x = block(x, real)
        return self.encoder_norm(x), real

    def _embed(self, words: Int[Tensor, "batch length"], first: int) -> Float[Tensor, "batch length width"]:
        """Words and their places, which begin at `first`."""
        places = self.get_buffer("places")[first : first + words.shape[1]]
        return self.dropout(self.words(words) * math.sqrt(self.words.embedding_dim) + places)
