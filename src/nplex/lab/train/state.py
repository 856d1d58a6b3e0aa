"""Where a run stands."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from nplex.lab.checked import AMOUNT, COUNT, NUMBER, Kind, are_numbers, is_number, wrong


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

    @classmethod
    def read(cls, values: object, main: str) -> "State":
        """The state that a checkpoint's header holds, `main` the score that counts.

        Raises:
            ValueError: it holds something else; says what is wrong.
        """
        if not isinstance(values, dict) or values.keys() != {each.name for each in fields(cls)}:
            raise ValueError("its state has other keys")
        found = wrong(values, KINDS)
        if not found:
            passes = [entry.get("epoch") if are_numbers(entry) else None for entry in values["history"]]
            scores = [None, *(entry.get(main) for entry in values["history"] if are_numbers(entry))]
            if passes != [*range(1, values["epoch"] + 1)]:
                found = f"its history has not the {values['epoch']} passes that are done"
            elif values["best_epoch"] > values["epoch"] or not _same(scores[values["best_epoch"]], values["best"]):
                found = f"best is {values['best']!r:.40}, which is not the score of pass {values['best_epoch']}"
            elif values["step"] < values["epoch"] + values["batch"]:
                found = f"step is {values['step']}, too few for {values['epoch']} passes"
        if found:
            raise ValueError(found)
        return cls(**values)


KINDS: dict[str, Kind] = {
    "step": COUNT, "epoch": COUNT, "batch": COUNT, "seconds": AMOUNT, "tokens": COUNT, "loss_sum": NUMBER,
    "items": COUNT, "best": ("a number or null", lambda value: value is None or is_number(value)),
    "best_epoch": COUNT, "history": ("a list", lambda value: isinstance(value, list)),
}  # fmt: skip


def _same(one: float | None, other: float | None) -> bool:
    """Whether two scores are equal; nan is nan."""
    return one == other or (one != one and other != other)


OnStep = Callable[[str, State, int], None]


def silent(label: str, state: State, steps: int) -> None:
    """Reports nothing."""
