"""What every recipe is, and what a tested model gives."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from torch import nn

from nplex.algebra import Algebra
from nplex.convert import Where, convert_, only, parse_rule
from nplex.lab.fields import check_fields
from nplex.lab.train import Schedule, Task
from nplex.nn import FixedRule, Rule
from nplex.stored_rules import table_of_json

Size = Literal["small", "paper"]
Kind = Literal["accuracy", "bleu", "loss"]
SIZES: tuple[Size, ...] = ("small", "paper")
Prediction = dict[str, Any]  # of a line: `label` and the `probabilities` of all labels, or `text`
PARTS: tuple[str, ...] = ("train", "dev", "test")
TEXT = ("text",)  # a line is one text, tabs and all
Reading = tuple[Path, tuple[Path, ...], Sequence[Any]]  # a folder, its files, and the raw examples of some parts
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
        table: of an own algebra, n x n x n numbers; its name is then the rule.
        inputs: what stands in a line to predict from, between tabs.

    Raises:
        ValueError: the rule's text names no rule, or one with n above the width; the set is unknown; or a number is
            out of range.
    """

    name: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]
    sets: ClassVar[tuple[str, ...]] = ()
    inputs: ClassVar[tuple[str, ...]] = TEXT
    rule: str = "4"
    shared: bool = False
    set: str = ""
    width: int = 128
    dropout: float = 0.2
    vocabulary: int = 12_000
    schedule: Schedule = field(default_factory=Schedule)
    table: Sequence[Sequence[Sequence[float]]] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.width % getattr(self, "heads", 1):
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {getattr(self, 'heads', 1)}")
        if self.set not in ("", *self.sets):
            known = f"set must be one of {', '.join(self.sets)}, or left out" if self.sets else "leave --set out"
            raise ValueError(f"{self.name}: {known}; got {self.set!r}")
        rule = self.made_rule()
        if rule is not None and rule.n > self.width:
            raise ValueError(
                f"rule {self.rule}: n = {rule.n} is larger than width = {self.width}: "
                f"take a rule with n of {self.width} or less"
            )

    @property
    def task_name(self) -> str:
        """As in settings.json: the task's name, or my_module:MyRecipe of one's own."""
        kind = type(self)
        return self.name if kind.__module__.startswith("nplex.") else f"{kind.__module__}:{kind.__qualname__}"

    @property
    def converted(self) -> Where:
        """Which layers are converted, and counted."""
        return only(*self.patterns)

    def made_rule(self) -> Rule | None:
        """The rule, from its text or table; None for dense."""
        return parse_rule(self.rule) if self.table is None else FixedRule(Algebra.from_table(self.table, self.rule))

    def with_rule(self, rule: str) -> "Recipe[V, P]":
        """The same with another rule: a text, or a JSON file with the table of an own algebra, which is kept.

        Raises:
            ValueError: it names no rule, or the file holds none.
            OSError: the file cannot be read.
        """
        if not rule.endswith(".json"):
            return replace(self, rule=rule, table=None)
        return replace(self, rule=Path(rule).name, table=table_of_json(Path(rule)).tolist())

    def load(self, folder: Path | None) -> Data[V, P]:
        """Reads the data, and makes the tokenizer from its training part; None for the built-in set.

        Raises:
            FileNotFoundError: a file is missing; says what a folder holds and how to get one.
            ValueError: a line is malformed, or a part is too short; names its file.
        """
        reading = self.read(folder)
        return self.encoded(reading, self.tokenizer(reading[2][0]))

    @abc.abstractmethod
    def read(self, folder: Path | None, parts: Sequence[str] = PARTS) -> Reading:
        """The folder, its files, and the raw examples of some of train, dev and test."""

    @abc.abstractmethod
    def tokenizer(self, train: Any) -> V:
        """What turns text into numbers, made from the raw training part."""

    @abc.abstractmethod
    def read_tokenizer(self, values: dict) -> V:
        """The same from what its `as_dict` gave.

        Raises:
            ValueError: these are no such values.
        """

    @abc.abstractmethod
    def encoded(self, reading: Reading, tokenizer: V) -> Data[V, P]:
        """What was read, as numbers; of a test part alone, which then stands for the others too."""

    @abc.abstractmethod
    def dense(self, data: Data[V, P]) -> nn.Module:
        """The model of torch's layers."""

    def build(self, data: Data[V, P]) -> nn.Module:
        """The dense model, its layers converted to the rule."""
        model, rule = self.dense(data), self.made_rule()
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
    def predict(
        self, model: nn.Module, lines: Sequence[Sequence[str]], tokenizer: V, device: torch.device
    ) -> list[Prediction]:
        """A label or a text for each line, which `cells` gave."""

    def cells(self, lines: Sequence[str]) -> list[list[str]]:
        """The inputs of each line.

        Raises:
            ValueError: a line is empty, or holds other columns; names it.
        """
        found = [[line] if self.inputs == TEXT else line.split("\t") for line in lines]
        for number, line in enumerate(found, 1):
            if len(line) != len(self.inputs) or not all(map(str.strip, line)):
                shown = "an empty text" if len(line) == len(self.inputs) else f"{len(line)} columns"
                raise ValueError(f"line {number}: expected {' TAB '.join(self.inputs)}, got {shown}")
        return found

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
