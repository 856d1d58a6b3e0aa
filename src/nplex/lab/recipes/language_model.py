"""A decoder-only transformer; plain torch layers, converted afterwards."""

import math
from collections.abc import Iterator

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.lab.recipes.blocks import Block, Decoding, sinusoids


class LanguageModel(nn.Module):
    """The next byte or word at each place; one table for input and output; norms before layers; sinusoids for places.

    Source: Vaswani et al., Attention is all you need (2017), the decoder without its source.
    """

    def __init__(
        self, words: int, *, width: int, heads: int, feed_forward: int, layers: int, dropout: float, longest: int
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Block(width, heads, feed_forward, dropout) for _ in range(layers))
        self.norm, self.dropout = nn.LayerNorm(width), nn.Dropout(dropout)
        self.register_buffer("places", sinusoids(longest, width), persistent=False)
        nn.init.normal_(self.words.weight, std=width**-0.5)

    def forward(self, text: Int[Tensor, "batch length_and_one"]) -> Float[Tensor, "batch length"]:
        """The loss, `-log p` in nats, of each place but the first, given those before it."""
        x = self._embed(text[:, :-1], 0)
        for block in self._blocks():
            x = block(x, causal=True)
        return F.cross_entropy(self._logits(x).transpose(1, 2), text[:, 1:], reduction="none")

    def start(self, source: Int[Tensor, "batch length"]) -> Decoding:
        """The state after a prompt, which may be empty; all prompts of a batch are of one length.

        Raises:
            ValueError: it is longer than the model has places.
        """
        state = Decoding([None] * len(self.blocks))
        if source.shape[1]:
            self._check(source.shape[1])
            x = self._embed(source, 0)
            for number, block in enumerate(self._blocks()):
                state.past[number] = block.attention.keys_values(block.attention_norm(x))
                x = block(x, causal=True)
            state.length = source.shape[1]
        return state

    def step(self, tokens: Int[Tensor, "batch"], state: Decoding) -> Float[Tensor, "batch words"]:
        """Logits of what follows `tokens`, which are added to the state.

        Raises:
            ValueError: the text is longer than the model has places.
        """
        self._check(state.length + 1)
        x = self._embed(tokens[:, None], state.length)
        for number, block in enumerate(self._blocks()):
            x, state.past[number] = block.extend(x, state.past[number])
        state.length += 1
        return self._logits(x[:, 0])

    def _check(self, length: int) -> None:
        if length > (longest := len(self.get_buffer("places"))):
            raise ValueError(f"the model reads {longest} places at most, got {length}; take a shorter text")

    def _blocks(self) -> Iterator[Block]:
        yield from self.blocks  # pyright: ignore[reportReturnType] - that is what it holds

    def _logits(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch words"]:
        return F.linear(self.norm(x), self.words.weight)

    def _embed(self, words: Int[Tensor, "batch length"], first: int) -> Float[Tensor, "batch length width"]:
        """Words and their places, which begin at `first`."""
        places = self.get_buffer("places")[first : first + words.shape[1]]
        return self.dropout(self.words(words) * math.sqrt(self.words.embedding_dim) + places)
