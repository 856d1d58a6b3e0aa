"""What every recipe is, and what a tested model gives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from nplex.convert import Where, convert_, parse_rule
from nplex.lab.train import Schedule, Task
from nplex.nn.linear import check_widths

Size = Literal["small", "paper"]
Kind = Literal["accuracy", "bleu", "loss"]
SIZES: tuple[Size, ...] = ("small", "paper")


@dataclass(frozen=True)
class Outcome:
    """A tested model.

    Attributes:
        kind: what the scores are: accuracy and BLEU in points from 0 to 100, loss in nats.
        scores: the main one first, under the kind's name.
        interval: the 95 % interval of the main score on other text of the same kind.
        answers: for accuracy one text of 0 and 1, one for each example; for BLEU the translations.
        tokens: read and written while testing.
        seconds: that it took.
        notes: how it was scored, as sacreBLEU's signature.
    """

    kind: Kind
    scores: dict[str, float]
    interval: tuple[float, float]
    answers: list[str]
    tokens: int
    seconds: float
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def examples(self) -> int:
        """How many were tested: the answers, or the places of a text of 0 and 1."""
        return len(self.answers[0]) if self.kind == "accuracy" else len(self.answers)


@dataclass(frozen=True)
class Baseline:
    """What needs no model.

    Attributes:
        name: as "majority" or "copy".
        scores: under the same names as an Outcome's.
    """

    name: str
    scores: dict[str, float]


@runtime_checkable
class Data(Protocol):
    """What a recipe's `load` gives."""

    @property
    def folder(self) -> Path:
        """Where it was read from."""
        ...

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that were read; results keep their names and SHA-256."""
        ...

    @property
    def references(self) -> list[str]:
        """The texts that answers to the test part are compared with; none where an answer speaks for itself."""
        ...

    def vocabulary_json(self) -> dict:
        """What turns text into numbers, as JSON that is kept beside the model."""
        ...


class Recipe(Protocol):
    """A frozen dataclass that decides a run, but for the seed and the data; `name` is as on the command line."""

    name: ClassVar[str]

    @property
    def rule(self) -> str:
        """`dense`, `4`, `4:7`, `quaternion`: what the layers become."""
        ...

    @property
    def shared(self) -> bool:
        """Whether they have one rule."""
        ...

    @property
    def set(self) -> str:
        """Which data set of a folder; "" for the task's own format."""
        ...

    @property
    def schedule(self) -> Schedule:
        """How long and how fast."""
        ...

    @property
    def converted(self) -> Where:
        """Which layers are converted, and counted."""
        ...

    def load(self, folder: Path | None) -> Data:
        """Reads the data; None for the built-in set.

        Raises:
            FileNotFoundError: a file is missing; says what a folder holds and how to get one.
            ValueError: a line is malformed; names file and line.
        """
        ...

    def build(self, data: Data) -> nn.Module:
        """The dense model, its layers converted to the rule."""
        ...

    def task(self, data: Data) -> Task:
        """The task as nplex.lab.train wants it."""
        ...

    def test(self, model: nn.Module, data: Data, device: torch.device) -> Outcome:
        """Scores on the test part."""
        ...

    def baseline(self, data: Data) -> Baseline:
        """The scores of what needs no model."""
        ...


def with_rule(model: nn.Module, rule: str, where: Where, *, shared: bool) -> nn.Module:
    """The model, its layers that `where` selects converted to the rule; none for `dense`."""
    parsed = parse_rule(rule)
    if parsed is not None:
        convert_(model, parsed, where=where, shared=shared)
    return model


def check_rule(rule: str, width: int) -> None:
    """Refuses a rule that the layers of a recipe cannot have.

    Raises:
        ValueError: the text names no rule, or one with n above the width.
    """
    parsed = parse_rule(rule)
    if parsed is None:
        return
    try:
        check_widths(parsed.n, width=width)
    except ValueError as error:
        raise ValueError(f"rule {rule}: {error}") from None


def check_size(size: str) -> None:
    """Refuses an unknown size.

    Raises:
        ValueError: it is neither small nor paper.
    """
    if size not in SIZES:
        raise ValueError(f"size must be {' or '.join(SIZES)}, got {size!r}")


def check_set(task: str, found: str, known: tuple[str, ...]) -> None:
    """Refuses a set that a task does not know.

    Raises:
        ValueError: names those that there are.
    """
    if found not in known:
        names = ", ".join(name for name in known if name)
        expected = f"set must be one of {names}, or left out" if names else "there is one format, leave --set out"
        raise ValueError(f"{task}: {expected}; got {found!r}")
