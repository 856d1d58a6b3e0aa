"""What the tasks that choose a label share: their data, their training and their scores."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.lab.recipes.recipe import Baseline, Outcome
from nplex.lab.scores.accuracy import by_source, interval
from nplex.lab.text import Vocabulary, batches
from nplex.lab.train import Loss


@runtime_checkable
class Labelled(Protocol):
    """Examples with labels."""

    @property
    def labels(self) -> Tensor:
        """Their numbers."""
        ...

    @property
    def sources(self) -> list[str]:
        """What kind of example each is."""
        ...

    @property
    def longer(self) -> list[int]:
        """The length that each example is padded from."""
        ...

    def tokens(self, index: int) -> int:
        """The words of an example."""
        ...

    def batch(self, indices: list[int], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs of the model and labels of some examples."""
        ...


@dataclass(frozen=True)
class LabelledData:
    """The three parts of a data folder, and the words of the training part."""

    folder: Path
    files: tuple[Path, ...]
    vocabulary: Vocabulary
    train: Labelled
    dev: Labelled
    test: Labelled

    @property
    def references(self) -> list[str]:
        """None: an answer speaks for itself."""
        return []

    def vocabulary_json(self) -> dict:
        """The words in the order of their numbers."""
        return {"words": self.vocabulary.words}


@dataclass(frozen=True)
class Choosing:
    """The task as nplex.lab.train wants it."""

    main: ClassVar[str] = "accuracy"
    higher: ClassVar[bool] = True
    data: LabelledData
    batch_size: int

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """Training examples of like length together, in random order."""
        return batches(self.data.train.longer, self.batch_size, generator)

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """Cross-entropy of the labels."""
        inputs, labels = self.data.train.batch(indices, device)
        total = F.cross_entropy(model(*inputs), labels, reduction="sum")
        return Loss(total, len(indices), sum(map(self.data.train.tokens, indices)))

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Accuracy on the dev part."""
        return {"accuracy": 100 * float(correct(model, self.data.dev, device).float().mean())}


@torch.no_grad()
def correct(model: nn.Module, split: Labelled, device: torch.device) -> Bool[Tensor, "_"]:
    """For each example whether the model's label is right."""
    model.eval()
    right = torch.zeros(len(split.labels), dtype=torch.bool)
    for indices in batches(split.longer, 256):
        inputs, labels = split.batch(indices, device)
        right[indices] = (model(*inputs).argmax(-1) == labels).cpu()
    return right


def tested(model: nn.Module, split: Labelled, device: torch.device) -> Outcome:
    """Accuracy on a part, in all and for each source."""
    began = time.perf_counter()
    right = correct(model, split, device).tolist()
    seconds = time.perf_counter() - began
    answers = "".join(str(int(value)) for value in right)
    low, high = interval([answers])
    tokens = sum(map(split.tokens, range(len(right))))
    return Outcome("accuracy", accuracies(right, split.sources), (100 * low, 100 * high), [answers], tokens, seconds)


def majority(data: LabelledData) -> Baseline:
    """Always the commoner label of the training part."""
    common = Counter(data.train.labels.tolist()).most_common(1)[0][0]
    return Baseline("majority", accuracies((data.test.labels == common).tolist(), data.test.sources))


def accuracies(right: Sequence[bool], sources: Sequence[str]) -> dict[str, float]:
    """In points: `accuracy` of all, then of each source."""
    found = by_source(right, sources)
    parts = {source: 100 * value for source, value in found.items() if source not in ("all", "accuracy")}
    return {"accuracy": 100 * found["all"], **parts}
