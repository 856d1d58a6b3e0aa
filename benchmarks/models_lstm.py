"""An LSTM language model, for benchmarks/models.py.

Embeddings of 512, two layers of 1024, a projection to 512, and the table of embeddings as output head. nplex has no
LSTM layer of its own yet, so its two weights a layer are held by linear layers, which are converted, and used in one
of two ways. The four gates are one layer of 4 x 1024 outputs, as in torch's weights.

    kernel    the dense weights, built once a pass, in torch's own LSTM
    layers    the inputs of all places through the layer at once, then place by place a cell of plain operations

The dense model is torch.nn.LSTM; "dense, layers" shows what a cell of plain operations costs.
"""

from dataclasses import dataclass

import models_work
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RULES = ("4", "4:7", "4:4", "8", "8:24", "8:8")
VARIANTS = ("dense", "dense, layers", *(f"{rule}, {way}" for rule in RULES for way in ("kernel", "layers")))
NOTE = (
    "LSTM language model, embeddings of 512, two layers of 1024, projection to 512, 8,000 subwords; embeddings and "
    "output head are one dense table in all. Training and evaluation: 32 x 64 subwords. Generation: greedy, 32 "
    "subwords, state kept. kernel: torch's LSTM on the dense weights, built once a pass; layers: all inputs through "
    "the layer at once, the recurrence place by place."
)


@dataclass(frozen=True)
class Sizes:
    """Of the model, and of what it is timed on."""

    vocabulary: int = 8000
    width: int = 512
    hidden: int = 1024
    layers: int = 2
    sentences: int = 32
    length: int = 64
    generated: int = 32


FULL = Sizes()
QUICK = Sizes(vocabulary=64, width=32, hidden=64, sentences=4, length=8, generated=8)
State = tuple[Tensor, Tensor]


class Recurrent(nn.Module):
    """torch.nn.LSTM with its weights in linear layers."""

    def __init__(self, width: int, hidden: int, layers: int, way: str) -> None:
        super().__init__()
        self.way = way
        self.inputs = nn.ModuleList(nn.Linear(hidden if layer else width, 4 * hidden) for layer in range(layers))
        self.hiddens = nn.ModuleList(nn.Linear(hidden, 4 * hidden) for _ in range(layers))
        # In a tuple, so that its weights, which are never used, do not count as parameters.
        self.kernel = (nn.LSTM(width, hidden, layers, batch_first=True, device="meta"),)

    def weights(self) -> dict[str, Tensor]:
        """The dense weights under torch's names."""
        return {
            f"{name}_{kind}_l{layer}": getattr(linear, name)
            for kind, linears in (("ih", self.inputs), ("hh", self.hiddens))
            for layer, linear in enumerate(linears)
            for name in ("weight", "bias")
        }

    def forward(self, x: Tensor, state: State, weights: dict[str, Tensor] | None = None) -> tuple[Tensor, State]:
        """As torch.nn.LSTM, batch first; weights, where they are built already, for the way "kernel"."""
        if self.way == "kernel":
            return torch.func.functional_call(self.kernel[0], weights or self.weights(), (x, state))
        ends = []
        for layer, (into, again) in enumerate(zip(self.inputs, self.hiddens, strict=True)):
            h, c, seen = state[0][layer], state[1][layer], []
            for gates in into(x).unbind(1):
                h, c = cell(gates + again(h), c)
                seen.append(h)
            x = torch.stack(seen, 1)
            ends.append((h, c))
        return x, (torch.stack([h for h, _ in ends]), torch.stack([c for _, c in ends]))


def cell(gates: Tensor, c: Tensor) -> State:
    """`c' = sigmoid(f) c + sigmoid(i) tanh(g)`, `h' = sigmoid(o) tanh(c')`, gates in the order i, f, g, o."""
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class LanguageModel(nn.Module):
    """Subwords to logits of the next one."""

    def __init__(self, sizes: Sizes, way: str | None) -> None:
        super().__init__()
        self.sizes = sizes
        self.words = nn.Embedding(sizes.vocabulary, sizes.width)
        self.recurrent: nn.LSTM | Recurrent
        if way is None:
            self.recurrent = nn.LSTM(sizes.width, sizes.hidden, sizes.layers, batch_first=True)
        else:
            self.recurrent = Recurrent(sizes.width, sizes.hidden, sizes.layers, way)
        self.project = nn.Linear(sizes.hidden, sizes.width)

    def reset_parameters(self) -> None:
        """First values of what is no layer's own."""
        nn.init.normal_(self.words.weight, std=self.sizes.width**-0.5)

    def zeros(self, words: Tensor) -> State:
        """The first state."""
        shape = (self.sizes.layers, len(words), self.sizes.hidden)
        return self.words.weight.new_zeros(shape), self.words.weight.new_zeros(shape)

    def head(self, x: Tensor) -> Tensor:
        """A projection, then the embeddings' table."""
        return F.linear(self.project(x), self.words.weight)

    def forward(self, words: Tensor) -> Tensor:
        """Logits of all places, batch x length x vocabulary."""
        return self.head(self.recurrent(self.words(words), self.zeros(words))[0])

    def loss(self, words: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(self(words).flatten(0, 1), labels.flatten())

    def start(self) -> dict[str, Tensor] | None:
        """What the way "kernel" needs for many steps: the dense weights, built once."""
        if isinstance(self.recurrent, Recurrent) and self.recurrent.way == "kernel":
            return self.recurrent.weights()
        return None

    def step(self, word: Tensor, state: State, weights: dict[str, Tensor] | None) -> tuple[Tensor, State]:
        """Logits of one place, batch x 1 x vocabulary."""
        given = (self.words(word), state) if weights is None else (self.words(word), state, weights)
        x, state = self.recurrent(*given)
        return self.head(x), state

    def generate(self, weights: dict[str, Tensor] | None, first: Tensor) -> Tensor:
        """The likeliest subword, again and again, from batch x 1 first ones."""
        words, state = [first], self.zeros(first)
        for _ in range(self.sizes.generated):
            logits, state = self.step(words[-1], state, weights)
            words.append(logits.argmax(-1))
        return torch.cat(words, 1)


def build(variant: str, sizes: Sizes) -> LanguageModel:
    """The dense model, or one with all linear layers converted."""
    rule, _, way = variant.partition(", ")
    return models_work.built(lambda: LanguageModel(sizes, way or None), rule)


def batch(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Subwords, and what follows each: random numbers do for the time."""
    words = torch.randint(sizes.vocabulary, (sizes.sentences, sizes.length + 1))
    return words[:, :-1], words[:, 1:]


def prompt(sizes: Sizes, sentences: int) -> tuple[Tensor]:
    """What generation starts from: a first subword of each sentence."""
    return (torch.randint(sizes.vocabulary, (sentences, 1)),)


def logits(model: LanguageModel, words: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """All places at once, and place by place from the state: they must agree."""
    state, weights, steps = model.zeros(words), model.start(), []
    for place in range(words.shape[1]):
        found, state = model.step(words[:, place : place + 1], state, weights)
        steps.append(found)
    return model(words), torch.cat(steps, 1)


def twin(model: LanguageModel) -> nn.Module:
    """A dense model of the same function, on torch's own LSTM."""
    dense = models_work.expanded(model)
    if isinstance(dense.recurrent, Recurrent):
        dense.recurrent.way = "kernel"
    return dense
