"""Where a run stands."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class State:
    """All that a checkpoint's header holds.

    Attributes:
        step: updates done.
        epoch: passes done.
        batch: updates done of the present pass.
        seconds: spent on updates.
        tokens: read, over all processes.
        loss_sum: of the present pass, over all items.
        items: of the present pass.
        best: the best dev score so far.
        best_epoch: after which pass.
        history: for each pass its loss and dev scores.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss_sum: float = 0.0
    items: int = 0
    best: float | None = None
    best_epoch: int = 0
    history: list[dict] = field(default_factory=list)


OnStep = Callable[[str, State, int], None]


def silent(label: str, state: State, steps: int) -> None:
    """Reports nothing."""
