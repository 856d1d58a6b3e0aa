"""Subject-verb agreement: from the words before a verb, is it singular or plural?

Paper: table 6 (accuracy; Transformer 400K 94.80, quaternion 94.70, n = 2 95.14, n = 4 95.05, n = 8 95.62), on
another split of Linzen's data. The same sizes: 2 layers, width 128, feed-forward 512, 4 heads.
Expected here and how long it takes: README.md.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.convert import convert_, only, parse_rule
from nplex.data import builtin
from nplex.nn.linear import check_widths
from nplex.recipes.encoder import Encoder
from nplex.text import QUERY, Example, Vocabulary, batches, find_split, pad, read_labelled
from nplex.train import Schedule

LABELS = ("VBZ", "VBP")
LAYERS = only("blocks.*")
LONGEST = 64


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run, but for the seed and the data.

    Attributes:
        rule: `dense`, `4`, `4:7`, `quaternion`: what the layers of the blocks become.
        width: of the model, the paper's d.
        feed_forward: the inner width of the blocks.
        heads: of attention.
        layers: number of blocks.
        dropout: after embeddings, attention and feed-forward.
        vocabulary: the most words kept; the others are read as unknown.
        schedule: how long and how fast.
    """

    rule: str = "4"
    width: int = 128
    feed_forward: int = 512
    heads: int = 4
    layers: int = 2
    dropout: float = 0.2
    vocabulary: int = 12_000
    schedule: Schedule = field(default_factory=Schedule)


def agreement(rule: str = "4") -> Recipe:
    """The paper's size, on the built-in data.

    Raises:
        ValueError: the text names no rule, or one with n above the width.
    """
    recipe = Recipe(rule=rule, schedule=Schedule(epochs=4, batch_size=64, learning_rate=1e-3))
    parsed = parse_rule(rule)
    if parsed is not None:
        try:
            check_widths(parsed.n, width=recipe.width)
        except ValueError as error:
            raise ValueError(f"rule {rule}: {error}") from None
    return recipe


def with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    """The same recipe, trained for longer or shorter."""
    return replace(recipe, schedule=replace(recipe.schedule, epochs=epochs))


@dataclass(frozen=True)
class Split:
    """Examples as numbers, longest first read: the query, then the words from the last to the first."""

    lines: list[Tensor]
    labels: Tensor
    sources: list[str]

    @classmethod
    def of(cls, examples: list[Example], vocabulary: Vocabulary) -> "Split":
        """Encodes examples; of lines that are too long the words nearest to the verb are kept."""
        encoded = vocabulary.encode([example.words[::-1][: LONGEST - 1] for example in examples])
        lines = [torch.cat([torch.tensor([QUERY]), line]) for line in encoded]
        labels = torch.tensor([LABELS.index(example.label) for example in examples])
        return cls(lines, labels, [example.source for example in examples])

    def batch(self, indices: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Words and labels of some examples."""
        return pad([self.lines[i] for i in indices]).to(device), self.labels[indices].to(device)


@dataclass(frozen=True)
class Data:
    """The three parts of a data folder, and the words of the training part."""

    folder: Path
    vocabulary: Vocabulary
    train: Split
    dev: Split
    test: Split


def load(folder: Path | None, most: int) -> Data:
    """Reads train, dev and test from a folder, or the built-in set.

    Raises:
        FileNotFoundError: a part is missing; says what a folder holds.
        ValueError: a line is malformed; names file and line.
    """
    folder = builtin("agreement") if folder is None else folder
    parts = {split: read_labelled(find_split(folder, split), LABELS) for split in ("train", "dev", "test")}
    vocabulary = Vocabulary.of((example.words for example in parts["train"]), most)
    return Data(folder, vocabulary, **{name: Split.of(part, vocabulary) for name, part in parts.items()})


def build(recipe: Recipe, vocabulary: Vocabulary) -> nn.Module:
    """The dense model, its blocks converted to the recipe's rule."""
    model = Encoder(
        len(vocabulary), len(LABELS), width=recipe.width, heads=recipe.heads, feed_forward=recipe.feed_forward,
        layers=recipe.layers, dropout=recipe.dropout, longest=LONGEST,
    )  # fmt: skip
    rule = parse_rule(recipe.rule)
    if rule is not None:
        convert_(model, rule, where=LAYERS)
    return model


@dataclass(frozen=True)
class Agreement:
    """The task as nplex.train wants it."""

    data: Data
    batch_size: int

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """Training examples of like length together, in random order."""
        return batches([len(line) for line in self.data.train.lines], self.batch_size, generator)

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> tuple[Tensor, int]:
        """Cross-entropy of the label, and the number of words read."""
        words, labels = self.data.train.batch(indices, device)
        return F.cross_entropy(model(words), labels), sum(len(self.data.train.lines[i]) for i in indices)

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Accuracy on the dev part."""
        return {"accuracy": float(correct(model, self.data.dev, device).float().mean())}


@torch.no_grad()
def correct(model: nn.Module, split: Split, device: torch.device) -> Tensor:
    """For each example whether the model's label is right."""
    model.eval()
    right = torch.zeros(len(split.lines), dtype=torch.bool)
    for indices in batches([len(line) for line in split.lines], 256):
        words, labels = split.batch(indices, device)
        right[indices] = (model(words).argmax(-1) == labels).cpu()
    return right
