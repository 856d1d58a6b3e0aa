"""An encoder-decoder transformer in plain torch, with a key-value cache, for benchmarks/models.py.

6 + 6 layers, width 512, feed-forward 2048, 8 heads: the transformer for translation of Vaswani et al. (2017) and of
the paper. Its 96 linear layers are converted; the shared table of embeddings, which is the output head too, stays
dense in all variants. A batch is 64 sentence pairs of 32 subwords, 2,048 target tokens, without padding.
"""

import math
from dataclasses import dataclass

import models_work
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VARIANTS = ("dense", "4", "4:7", "4:4", "8", "8:24", "8:8")
NOTE = (
    "Transformer, 6 + 6 layers, width 512, feed-forward 2048, 8 heads, 8,000 subwords; embeddings and output head "
    "are one dense table in all. Training and evaluation: 64 sentences of 32 subwords, no padding. Generation: "
    "greedy, 32 tokens from a source of 32, key-value cache, without the encoder; a step gives each sentence a token."
)


@dataclass(frozen=True)
class Sizes:
    """Of the model, and of what it is timed on."""

    vocabulary: int = 8000
    width: int = 512
    feed_forward: int = 2048
    heads: int = 8
    layers: int = 6
    dropout: float = 0.1
    sentences: int = 64
    length: int = 32


FULL, QUICK = Sizes(), Sizes(vocabulary=64, width=32, feed_forward=64, heads=2, layers=2, sentences=4, length=8)


class Attention(nn.Module):
    """Multi-head attention with four projections."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.query, self.key, self.value, self.out = (nn.Linear(sizes.width, sizes.width) for _ in range(4))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of what is looked at: batch x heads x length x width / heads."""
        return self._split(self.key(x)), self._split(self.value(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, causal: bool = False) -> Tensor:
        """`out(softmax(q k^T / sqrt(width / heads)) v)`."""
        mixed = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values, is_causal=causal)
        return self.out(mixed.transpose(1, 2).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two layers, normalised before."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(sizes.width, sizes.feed_forward), nn.Linear(sizes.feed_forward, sizes.width)
        self.norm, self.dropout = nn.LayerNorm(sizes.width), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`x + down(relu(up(norm(x))))`."""
        return x + self.dropout(self.down(F.relu(self.up(self.norm(x)))))


class Encoding(nn.Module):
    """A layer of the encoder, normalised before."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.own, self.own_norm = Attention(sizes), nn.LayerNorm(sizes.width)
        self.feed, self.dropout = FeedForward(sizes), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then feed-forward, each added to its input."""
        y = self.own_norm(x)
        return self.feed(x + self.dropout(self.own(y, *self.own.keys_values(y))))


class Decoding(nn.Module):
    """A layer of the decoder: looks at itself, at what the encoder gave, and feeds forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.own, self.own_norm = Attention(sizes), nn.LayerNorm(sizes.width)
        self.cross, self.cross_norm = Attention(sizes), nn.LayerNorm(sizes.width)
        self.feed, self.dropout = FeedForward(sizes), nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """All places at once, each looking back only."""
        y = self.own_norm(x)
        x = x + self.dropout(self.own(y, *self.own.keys_values(y), causal=True))
        x = x + self.dropout(self.cross(self.cross_norm(x), *self.cross.keys_values(memory)))
        return self.feed(x)

    def step(self, x: Tensor, cache: "Cache", place: int) -> Tensor:
        """One place, from the keys and values of those before it."""
        y = self.own_norm(x)
        x = x + self.own(y, *cache.append(*self.own.keys_values(y), place))
        return self.feed(x + self.cross(self.cross_norm(x), cache.memory_keys, cache.memory_values))


@dataclass(frozen=True)
class Cache:
    """Keys and values of one decoder layer: its own, filled place by place, and those of the source."""

    keys: Tensor
    values: Tensor
    memory_keys: Tensor
    memory_values: Tensor

    def append(self, key: Tensor, value: Tensor, place: int) -> tuple[Tensor, Tensor]:
        """Stores those of one place; all so far."""
        self.keys[:, :, place : place + 1], self.values[:, :, place : place + 1] = key, value
        return self.keys[:, :, : place + 1], self.values[:, :, : place + 1]


class Transformer(nn.Module):
    """Source and target to logits of the next target subword."""

    places: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.words = nn.Embedding(sizes.vocabulary, sizes.width)
        self.register_buffer("places", torch.empty(sizes.length, sizes.width), persistent=False)
        self.encoder = nn.ModuleList(Encoding(sizes) for _ in range(sizes.layers))
        self.decoder = nn.ModuleList(Decoding(sizes) for _ in range(sizes.layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(sizes.width), nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def reset_parameters(self) -> None:
        """First values of what is no layer's own."""
        nn.init.normal_(self.words.weight, std=self.sizes.width**-0.5)
        self.places.copy_(sinusoids(*self.places.shape))

    def embed(self, words: Tensor, place: int = 0) -> Tensor:
        """`sqrt(width) table[words] + places`."""
        x = self.words(words) * math.sqrt(self.sizes.width) + self.places[place : place + words.shape[1]]
        return self.dropout(x)

    def encode(self, source: Tensor) -> Tensor:
        """What the decoder looks at."""
        x = self.embed(source)
        for layer in self.encoder:
            x = layer(x)
        return self.encoder_norm(x)

    def head(self, x: Tensor) -> Tensor:
        """The embeddings' table as output layer."""
        return F.linear(self.decoder_norm(x), self.words.weight)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits of all places, batch x length x vocabulary."""
        memory, x = self.encode(source), self.embed(target)
        for layer in self.decoder:
            x = layer(x, memory)
        return self.head(x)

    def loss(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy, with the paper's label smoothing."""
        return F.cross_entropy(self(source, target).flatten(0, 1), labels.flatten(), label_smoothing=0.1)

    def start(self, source: Tensor) -> list[Cache]:
        """The encoder's work, and a cache for each layer of the decoder."""
        memory, caches = self.encode(source), []
        for layer in self.decoder:
            assert isinstance(layer, Decoding)
            keys, values = layer.cross.keys_values(memory)
            shape = (*keys.shape[:2], self.sizes.length, keys.shape[3])
            caches.append(Cache(keys.new_empty(shape), keys.new_empty(shape), keys.contiguous(), values.contiguous()))
        return caches

    def step(self, word: Tensor, caches: list[Cache], place: int) -> Tensor:
        """Logits of one place, batch x 1 x vocabulary."""
        x = self.embed(word, place)
        for layer, cache in zip(self.decoder, caches, strict=True):
            assert isinstance(layer, Decoding)
            x = layer.step(x, cache, place)
        return self.head(x)

    def generate(self, caches: list[Cache], first: Tensor) -> Tensor:
        """The likeliest subword, again and again, from batch x 1 first ones."""
        words = [first]
        for place in range(self.sizes.length):
            words.append(self.step(words[-1], caches, place).argmax(-1))
        return torch.cat(words, 1)


def sinusoids(length: int, width: int) -> Tensor:
    """`sin(place / 10000^(2 i / width))` and the cosines."""
    angles = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(1e4) / width))
    return torch.cat([angles.sin(), angles.cos()], 1)


def build(variant: str, sizes: Sizes) -> Transformer:
    """The dense model, or one with all linear layers converted."""
    return models_work.built(lambda: Transformer(sizes), variant)


def batch(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target, and what follows each target subword: random numbers do for the time."""
    source, target = torch.randint(sizes.vocabulary, (2, sizes.sentences, sizes.length + 1))
    return source[:, :-1], target[:, :-1], target[:, 1:]


def prompt(sizes: Sizes, sentences: int) -> tuple[Tensor, Tensor]:
    """What generation starts from: sources, and a first subword of each target."""
    words = torch.randint(sizes.vocabulary, (sentences, sizes.length + 1))
    return words[:, :-1], words[:, -1:]


def logits(model: Transformer, source: Tensor, target: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """All places at once, and place by place from the cache: they must agree."""
    caches = model.start(source)
    steps = [model.step(target[:, place : place + 1], caches, place) for place in range(target.shape[1])]
    return model(source, target), torch.cat(steps, 1)


twin = models_work.expanded
