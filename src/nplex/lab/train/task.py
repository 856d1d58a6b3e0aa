"""What is trained: batches of examples, their loss, and scores."""

from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Loss(NamedTuple):
    """The loss of some examples.

    Attributes:
        total: the sum over items.
        items: what the gradient is averaged over: examples, or the words to be predicted.
        tokens: that were read, for speed.
    """

    total: Tensor
    items: int
    tokens: int


@runtime_checkable
class Task(Protocol):
    """Examples, their loss, and the scores of a model on the dev part.

    Attributes:
        main: the name of the score that counts.
        higher: whether more of it is better.
    """

    main: ClassVar[str]
    higher: ClassVar[bool]

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """The indices of one epoch, in batches."""
        ...

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """The loss of a batch."""
        ...

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """What is logged after each epoch, on the dev part."""
        ...
