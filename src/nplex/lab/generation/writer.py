"""What a model must answer to be written with."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class State(Protocol):
    """What a model knows of the sentences that it writes."""

    def select(self, rows: Int[Tensor, "rows"]) -> "State":
        """The state of some sentences, in another order or several times."""
        ...

    def reorder(self, rows: Int[Tensor, "rows"]) -> "State":
        """As select, where each row takes the place of one of the same source."""
        ...


@runtime_checkable
class Writer(Protocol):
    """A model that writes word by word; a torch module."""

    def start(self, source: Int[Tensor, "batch length"]) -> Any:
        """The state before the first word."""
        ...

    def step(self, tokens: Int[Tensor, "batch"], state: Any) -> Float[Tensor, "batch words"]:
        """Logits of the word after `tokens`, which are added to the state."""
        ...
