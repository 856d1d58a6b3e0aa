"""Subject-verb agreement: from the words before a verb, is it singular or plural?

Paper: table 6 (accuracy; Transformer 400K 94.80, quaternion 94.70, n = 2 95.14, n = 4 95.05, n = 8 95.62), on
another split of Linzen's data. The same sizes: 2 layers, width 128, feed-forward 512, 4 heads.
Expected here and how long it takes: README.md.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nplex.convert import Where, only
from nplex.lab.data import builtin
from nplex.lab.recipes.encoder import Encoder
from nplex.lab.recipes.labels import Choosing, LabelledData, majority, tested
from nplex.lab.recipes.recipe import Baseline, Outcome, check_rule, check_set, check_size, with_rule
from nplex.lab.text import QUERY, Example, Vocabulary, find_split, pad, read_labelled
from nplex.lab.train import Schedule

LABELS = ("VBZ", "VBP")
LAYERS = only("blocks.*")
LONGEST = 64


@dataclass(frozen=True)
class Agreement:
    """Everything that decides a run, but for the seed and the data.

    Attributes:
        rule: `dense`, `4`, `4:7`, `quaternion`: what the layers of the blocks become.
        shared: whether they have one rule.
        set: "", there is one format.
        width: of the model, the paper's d.
        feed_forward: the inner width of the blocks.
        heads: of attention.
        layers: number of blocks.
        dropout: after embeddings, attention and feed-forward.
        vocabulary: the most words kept; the others are read as unknown.
        schedule: how long and how fast.
    """

    name: ClassVar[str] = "agreement"
    rule: str = "4"
    shared: bool = False
    set: str = ""
    width: int = 128
    feed_forward: int = 512
    heads: int = 4
    layers: int = 2
    dropout: float = 0.2
    vocabulary: int = 12_000
    schedule: Schedule = field(default_factory=Schedule)

    @property
    def converted(self) -> Where:
        """The layers of the blocks."""
        return LAYERS

    def load(self, folder: Path | None) -> LabelledData:
        """Reads train, dev and test from a folder, or the built-in set.

        Raises:
            FileNotFoundError: a part is missing; says what a folder holds.
            ValueError: a line is malformed; names file and line.
        """
        folder = builtin("agreement") if folder is None else folder
        files = tuple(find_split(folder, split) for split in ("train", "dev", "test"))
        train, dev, test = (read_labelled(file, LABELS) for file in files)
        vocabulary = Vocabulary.of((example.words for example in train), self.vocabulary)
        return LabelledData(folder, files, vocabulary, *(Split.of(part, vocabulary) for part in (train, dev, test)))

    def build(self, data: LabelledData) -> nn.Module:
        """The dense model, its blocks converted to the recipe's rule."""
        model = Encoder(
            len(data.vocabulary), len(LABELS), width=self.width, heads=self.heads, feed_forward=self.feed_forward,
            layers=self.layers, dropout=self.dropout, longest=LONGEST,
        )  # fmt: skip
        return with_rule(model, self.rule, LAYERS, shared=self.shared)

    def task(self, data: LabelledData) -> Choosing:
        """The task as nplex.lab.train wants it."""
        return Choosing(data, self.schedule.batch_size)

    def test(self, model: nn.Module, data: LabelledData, device: torch.device) -> Outcome:
        """Accuracy on the test part, in all and for each source."""
        return tested(model, data.test, device)

    def baseline(self, data: LabelledData) -> Baseline:
        """Always the commoner label of the training part."""
        return majority(data)


def agreement(rule: str = "4", *, size: str = "small", set: str = "") -> Agreement:
    """The paper's size, which two cores train in minutes: `small` and `paper` are the same.

    Raises:
        ValueError: the text names no rule, or one with n above the width; or an unknown size or set.
    """
    check_size(size)
    check_set("agreement", set, ("",))
    schedule = Schedule(epochs=4, batch_size=64, learning_rate=1e-3, checkpoint_every=100)
    recipe = Agreement(rule=rule, schedule=schedule)
    check_rule(rule, recipe.width)
    return recipe


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

    @property
    def longer(self) -> list[int]:
        """The length of each line."""
        return [len(line) for line in self.lines]

    def tokens(self, index: int) -> int:
        """The words of a line, the query among them."""
        return len(self.lines[index])

    def batch(self, indices: list[int], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Words and labels of some examples."""
        return (pad([self.lines[i] for i in indices]).to(device),), self.labels[indices].to(device)
