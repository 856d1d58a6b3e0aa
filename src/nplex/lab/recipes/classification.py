"""Tasks that choose a label for a text or two: their data, training and scores."""

import abc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.lab.recipes.recipe import Data, Outcome, Recipe
from nplex.lab.scores import wilson
from nplex.lab.text import Row, Vocabulary, batches, longest, moved, pad_sides
from nplex.lab.train import Loss, spread

Parts = tuple[list[Row], list[Row], list[Row]]


@dataclass(frozen=True)
class Labelled:
    """Examples as numbers: a text or two of each, its label, and what kind of example it is."""

    sides: tuple[list[Tensor], ...]
    labels: Int[Tensor, "_"]
    sources: list[str]

    def tokens(self, indices: Sequence[int]) -> int:
        """The words of some examples."""
        return sum(len(side[i]) for i in indices for side in self.sides)

    def batch(self, indices: Sequence[int], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs of the model and labels of some examples."""
        return pad_sides(self.sides, indices, device), moved(self.labels[list(indices)], device)


LabelledData = Data[Vocabulary, Labelled]


@dataclass(frozen=True)
class Classification(Recipe[Vocabulary, Labelled]):
    """Chooses a label; scored by accuracy."""

    labels: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def read(self, folder: Path | None) -> tuple[Path, tuple[Path, ...], Parts]:
        """The folder, its files, and the rows of train, dev and test."""

    @abc.abstractmethod
    def words(self, text: str) -> list[str]:
        """The words of a text."""

    @abc.abstractmethod
    def encode(self, lines: list[list[str]], vocabulary: Vocabulary) -> list[Tensor]:
        """The numbers that the model reads, for the words of each text."""

    def load(self, folder: Path | None) -> LabelledData:
        """Reads train, dev and test from a folder, or the built-in set, and numbers the words of train.

        Raises:
            FileNotFoundError: a part is missing; says what a folder holds.
            ValueError: a line is malformed; names file and line.
        """
        found, files, parts = self.read(folder)
        vocabulary = Vocabulary.of((self.words(text) for row in parts[0] for text in row.texts), self.vocabulary)
        train, dev, test = (self._labelled(part, vocabulary) for part in parts)
        return Data(found, files, vocabulary, train, dev, test)

    def _labelled(self, rows: list[Row], vocabulary: Vocabulary) -> Labelled:
        sides = zip(*(row.texts for row in rows), strict=True)
        encoded = tuple(self.encode([self.words(text) for text in side], vocabulary) for side in sides)
        labels = torch.tensor([self.labels.index(row.label) for row in rows])
        return Labelled(encoded, labels, [row.source for row in rows])

    def task(self, data: LabelledData) -> "ClassificationTask":
        """What `nplex.lab.fit` trains."""
        return ClassificationTask(data, self.schedule.batch_size)

    def test(self, model: nn.Module, data: LabelledData, device: torch.device) -> Outcome:
        """Accuracy on the test part, in all and for each source."""
        began = time.perf_counter()
        right = correct(model, data.test, device).tolist()
        seconds = time.perf_counter() - began
        answers = "".join(str(int(value)) for value in right)
        low, high = wilson([answers])
        scores, tokens = accuracies(right, data.test.sources), data.test.tokens(range(len(right)))
        return Outcome("accuracy", scores, (100 * low, 100 * high), [answers], tokens, seconds)

    def baseline(self, data: LabelledData) -> tuple[str, dict[str, float]]:
        """The majority class of the training part."""
        common = Counter(data.train.labels.tolist()).most_common(1)[0][0]
        return "majority", accuracies((data.test.labels == common).tolist(), data.test.sources)


@dataclass(frozen=True)
class ClassificationTask:
    """Cross-entropy of labels; accuracy on the dev part."""

    main: ClassVar[str] = "accuracy"
    higher: ClassVar[bool] = True
    data: LabelledData
    batch_size: int

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """Training examples of like length together, in random order."""
        return batches(longest(self.data.train.sides), self.batch_size, generator)

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """Cross-entropy of the labels."""
        inputs, labels = self.data.train.batch(indices, device)
        total = F.cross_entropy(model(*inputs), labels, reduction="sum")
        return Loss(total, len(indices), self.data.train.tokens(indices))

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Accuracy on the dev part."""
        return {"accuracy": 100 * float(correct(model, self.data.dev, device).float().mean())}


@torch.no_grad()
def correct(model: nn.Module, part: Labelled, device: torch.device) -> Bool[Tensor, "_"]:
    """For each example whether the model's label is right."""
    model.eval()
    right = torch.zeros(len(part.labels), dtype=torch.bool)
    work = batches(longest(part.sides), 256)
    chosen = spread(work, lambda indices: model(*pad_sides(part.sides, indices, device)).argmax(-1).cpu())
    for indices, labels in zip(work, chosen, strict=True):
        right[indices] = labels == part.labels[indices]
    return right


def accuracies(right: Sequence[bool], sources: Sequence[str]) -> dict[str, float]:
    """In points: `accuracy` of all, then of each source."""
    groups: dict[str, list[bool]] = {}
    for value, source in zip(right, sources, strict=True):
        groups.setdefault(source, []).append(value)
    parts = {source: values for source, values in sorted(groups.items()) if source not in ("all", "accuracy")}
    return {name: 100 * sum(values) / len(values) for name, values in ({"accuracy": right} | parts).items()}
