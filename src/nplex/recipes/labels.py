"""What the tasks that choose a label share."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from nplex.scores.accuracy import by_source
from nplex.text import batches


@runtime_checkable
class Labelled(Protocol):
    """Examples with labels."""

    @property
    def labels(self) -> Tensor:
        """Their numbers."""
        ...

    @property
    def longer(self) -> list[int]:
        """The length that each example is padded from."""
        ...

    def batch(self, indices: list[int], device: torch.device) -> tuple[tuple[Tensor, ...], Tensor]:
        """Inputs of the model and labels of some examples."""
        ...


@torch.no_grad()
def correct(model: nn.Module, split: Labelled, device: torch.device) -> Bool[Tensor, "_"]:
    """For each example whether the model's label is right."""
    model.eval()
    right = torch.zeros(len(split.labels), dtype=torch.bool)
    for indices in batches(split.longer, 256):
        inputs, labels = split.batch(indices, device)
        right[indices] = (model(*inputs).argmax(-1) == labels).cpu()
    return right


def accuracies(right: Sequence[bool], sources: Sequence[str]) -> dict[str, float]:
    """In points: `accuracy` of all, then of each source."""
    found = by_source(right, sources)
    parts = {source: 100 * value for source, value in found.items() if source not in ("all", "accuracy")}
    return {"accuracy": 100 * found["all"], **parts}
