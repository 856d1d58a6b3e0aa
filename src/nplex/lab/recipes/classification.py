"""Tasks that choose a label for a text or two: their data, training and scores."""

import abc
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.lab.recipes.recipe import Data, Outcome, Prediction, Reading, Recipe
from nplex.lab.scores import wilson
from nplex.lab.text import Row, Vocabulary, batches, longest, moved, pad_sides
from nplex.lab.train import Loss, spread


@dataclass(frozen=True)
class Labelled:
    """Examples as numbers: a text or two of each, its label, and what kind of example it is."""

    sides: tuple[list[Tensor], ...]
    labels: Int[Tensor, "_"]
    sources: list[str]

    def __len__(self) -> int:
        return len(self.labels)

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
    def words(self, text: str) -> list[str]:
        """The words of a text."""

    @abc.abstractmethod
    def encode(self, lines: list[list[str]], vocabulary: Vocabulary) -> list[Tensor]:
        """The numbers that the model reads, for the words of each text."""

    def tokenizer(self, train: list[Row]) -> Vocabulary:
        """The words of the training part."""
        return Vocabulary.of((self.words(text) for row in train for text in row.texts), self.vocabulary)

    def read_tokenizer(self, values: dict) -> Vocabulary:
        """Its words."""
        return Vocabulary.from_dict(values)

    def encoded(self, reading: Reading, tokenizer: Vocabulary) -> LabelledData:
        """The rows of each part as numbers."""
        folder, files, parts = reading
        found = [self._labelled(part, tokenizer) for part in parts]
        return Data(folder, files, tokenizer, found[0], found[len(found) // 2], found[-1])

    def _labelled(self, rows: list[Row], vocabulary: Vocabulary) -> Labelled:
        labels = torch.tensor([self.labels.index(row.label) for row in rows])
        return Labelled(self._sides([row.texts for row in rows], vocabulary), labels, [row.source for row in rows])

    def _sides(self, texts: Sequence[Sequence[str]], vocabulary: Vocabulary) -> tuple[list[Tensor], ...]:
        sides = zip(*texts, strict=True)
        return tuple(self.encode([self.words(text) for text in side], vocabulary) for side in sides)

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

    def predict(
        self, model: nn.Module, lines: Sequence[Sequence[str]], tokenizer: Vocabulary, device: torch.device
    ) -> list[Prediction]:
        """The likeliest label, and the probability of each."""
        rows = logits(model, self._sides(lines, tokenizer), device).softmax(-1).tolist()
        found = [dict(zip(self.labels, row, strict=True)) for row in rows]
        return [{"label": max(row, key=lambda label: row[label]), "probabilities": row} for row in found]

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
def logits(
    model: nn.Module, sides: Sequence[list[Tensor]], device: torch.device
) -> Float[Tensor, "examples classes"]:
    """What the model gives for each example, in batches of like length."""
    model.eval()
    order = batches(longest(sides), 256)
    found = torch.cat(spread(order, lambda indices: model(*pad_sides(sides, indices, device)).float().cpu()))
    return found[torch.tensor([index for indices in order for index in indices]).argsort()]


def correct(model: nn.Module, part: Labelled, device: torch.device) -> Bool[Tensor, "_"]:
    """For each example whether the model's label is right."""
    return logits(model, part.sides, device).argmax(-1) == part.labels


def accuracies(right: Sequence[bool], sources: Sequence[str]) -> dict[str, float]:
    """In points: `accuracy` of all, then of each source."""
    groups: dict[str, list[bool]] = {}
    for value, source in zip(right, sources, strict=True):
        groups.setdefault(source, []).append(value)
    parts = {source: values for source, values in sorted(groups.items()) if source not in ("all", "accuracy")}
    return {name: 100 * sum(values) / len(values) for name, values in ({"accuracy": right} | parts).items()}
