"""What every recipe is, and what a tested model gives."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import torch
from torch import nn

from nplex.convert import Where, convert_, only, parse_rule
from nplex.lab.train import Schedule, Task

Size = Literal["small", "paper"]
Kind = Literal["accuracy", "bleu", "loss"]
SIZES: tuple[Size, ...] = ("small", "paper")
V = TypeVar("V")
P = TypeVar("P")


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
class Data(Generic[V, P]):
    """What a recipe's `load` gives.

    Attributes:
        folder: where it was read from.
        files: all that were read; results keep their names and SHA-256.
        vocabulary: what turns text into numbers; its `as_dict()` is kept beside the model.
        train: the examples that are learned from.
        dev: those that are scored after each pass.
        test: those of the result.
        references: the texts that answers to the test part are compared with; none where an answer speaks for itself.
    """

    folder: Path
    files: tuple[Path, ...]
    vocabulary: V
    train: P
    dev: P
    test: P
    references: Sequence[str] = ()


@dataclass(frozen=True)
class Recipe(abc.ABC, Generic[V, P]):
    """Everything that decides a run, but for the seed and the data.

    Attributes:
        rule: `dense`, `4`, `4:7`, `quaternion`: what the converted layers become.
        shared: whether they have one rule.
        set: a public set; "" for the task's own format.
        width: of the model, the paper's d.
        dropout: after embeddings and layers.
        vocabulary: the most words or subwords that have a number of their own.
        schedule: how long and how fast.

    Raises:
        ValueError: the rule's text names no rule, or one with n above the width; or the set is unknown.
    """

    name: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]
    sets: ClassVar[tuple[str, ...]] = ()
    rule: str = "4"
    shared: bool = False
    set: str = ""
    width: int = 128
    dropout: float = 0.2
    vocabulary: int = 12_000
    schedule: Schedule = field(default_factory=Schedule)

    def __post_init__(self) -> None:
        if self.set not in ("", *self.sets):
            known = f"set must be one of {', '.join(self.sets)}, or left out" if self.sets else "leave --set out"
            raise ValueError(f"{self.name}: {known}; got {self.set!r}")
        rule = parse_rule(self.rule)
        if rule is not None and rule.n > self.width:
            raise ValueError(
                f"rule {self.rule}: n = {rule.n} is larger than width = {self.width}: "
                f"take a rule with n of {self.width} or less"
            )

    @property
    def converted(self) -> Where:
        """Which layers are converted, and counted."""
        return only(*self.patterns)

    @abc.abstractmethod
    def load(self, folder: Path | None) -> Data[V, P]:
        """Reads the data; None for the built-in set.

        Raises:
            FileNotFoundError: a file is missing; says what a folder holds and how to get one.
            ValueError: a line is malformed; names file and line.
        """

    @abc.abstractmethod
    def dense(self, data: Data[V, P]) -> nn.Module:
        """The model of torch's layers."""

    def build(self, data: Data[V, P]) -> nn.Module:
        """The dense model, its layers converted to the rule."""
        model, rule = self.dense(data), parse_rule(self.rule)
        if rule is not None:
            convert_(model, rule, where=self.converted, shared=self.shared)
        return model

    @abc.abstractmethod
    def task(self, data: Data[V, P]) -> Task:
        """What `nplex.lab.fit` trains."""

    @abc.abstractmethod
    def test(self, model: nn.Module, data: Data[V, P], device: torch.device) -> Outcome:
        """Scores on the test part."""

    @abc.abstractmethod
    def baseline(self, data: Data[V, P]) -> tuple[str, dict[str, float]]:
        """What needs no model: its name, as "majority" or "copy", and its scores under the names of an Outcome's."""


def is_small(size: str) -> bool:
    """Whether a size is the small one, or the paper's.

    Raises:
        ValueError: it is neither small nor paper.
    """
    if size not in SIZES:
        raise ValueError(f"size must be {' or '.join(SIZES)}, got {size!r}")
    return size == "small"


def no_data(task: str, set: str = "", fetched: str = "") -> FileNotFoundError:
    """The error of a task, or of one of its public sets, that has no built-in data."""
    if set:
        return FileNotFoundError(f"--set {set} needs its folder: give it with --data")
    return FileNotFoundError(
        f"{task} has no built-in data: nplex fetch {fetched} gets some, or give a folder with --data; "
        f"docs/tasks.md says what it holds"
    )
