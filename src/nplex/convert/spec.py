"""What to convert, and to which rule: frozen values, and the text of a rule."""

import copy
import fnmatch
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from nplex.algebra import Algebra, named, real
from nplex.convert.where import Where, unselected
from nplex.nn import FixedRule, LearnedRule, Rule, as_rule

Rules = int | str | Algebra | Rule | Mapping[str, int | str | Algebra | Rule | None]
LOW_RANK = "low-rank:"


@dataclass(frozen=True)
class LowRank:
    """Two factors in the place of a weight, `W = left right`: a LowRankLinear whose rule is that of the real numbers.

    Attributes:
        size: the rank, or below 1 the share of the weight's numbers that the factors have.
    """

    size: int | float

    def of(self, rows: int, columns: int) -> int:
        """The rank for a weight."""
        return self.size if isinstance(self.size, int) else max(1, int(self.size * rows * columns / (rows + columns)))


@dataclass(frozen=True, eq=False)
class Choice:
    """One rule of a conversion, and the names it is for.

    Attributes:
        pattern: of full names, as fnmatch reads it.
        rule: n, an algebra, a rule, or a low rank; None for layers that are skipped.
        shared: whether all its layers use one rule.
    """

    pattern: str
    rule: int | Algebra | Rule | LowRank | None
    shared: bool

    @property
    def registers(self) -> bool:
        """Whether a shared rule is still to be registered: it is one that no base holds yet."""
        return self.shared and not self._given

    @property
    def shares(self) -> bool:
        """Whether its layers use one rule."""
        return self.shared or self._given

    @property
    def _given(self) -> bool:
        return isinstance(self.rule, Rule) and self.rule.is_shared

    @cached_property
    def template(self) -> Rule:
        """The rule that each layer's own is like."""
        rule = real if isinstance(self.rule, LowRank) else self.rule
        return as_rule(rule, device="meta")  # pyright: ignore - None is refused there

    def low_rank(self, module: nn.Module) -> int | None:
        """The rank of the factors for a layer, None where it gets components."""
        if not isinstance(self.rule, LowRank):
            return None
        rows, *columns = getattr(module, "weight", torch.empty(1, 1, device="meta")).shape
        return self.rule.of(rows, math.prod(columns))

    def fresh(self, device: torch.device, dtype: torch.dtype) -> Rule:
        """A free rule with first values, on a device."""
        if isinstance(self.rule, int | Algebra):
            return as_rule(self.rule, device=device, dtype=dtype)
        rule = copy.deepcopy(self.template).to_empty(device=device).to(dtype)
        rule.reset_parameters()
        return rule


@dataclass(frozen=True)
class Conversion:
    """Which layers get which rule.

    Attributes:
        rule: n, an algebra, a rule, or a low rank as text; each converted layer gets a fresh rule of its own like it.
            Or a mapping from patterns of full names to these, in which the first that matches counts and
            None means: skip.
        where: which layers, by name and module; None for all but embeddings.
        shared: whether all layers of a rule use one, registered at the base of the model as `rule`, `rule_1`, ...
        weights: "fresh" or "nearest".
    """

    rule: Rules
    where: Where | None = None
    shared: bool = False
    weights: str = "fresh"

    def __post_init__(self) -> None:
        if self.weights not in ("fresh", "nearest"):
            raise ValueError(f"weights must be fresh or nearest, got {self.weights!r}")
        is_mapping = isinstance(self.rule, Mapping)
        if isinstance(self.rule, Mapping) and not all(isinstance(key, str) and key for key in self.rule or [""]):
            raise TypeError(
                f'a mapping of rules needs patterns, as in {{"encoder.*": 4, "*": None}}, got {self.rule}'
            )
        for choice in self.choices:
            try:
                if choice.rule is not None or not is_mapping:
                    _ = choice.template
            except (TypeError, ValueError) as error:
                raise type(error)(f"{choice.pattern!r}: {error}" if is_mapping else str(error)) from None
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where must be a function of name and module, as nplex.only gives, got {self.where!r}")

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """All rules, in the order in which they are tried."""
        rules = self.rule if isinstance(self.rule, Mapping) else {"*": self.rule}
        choices = []
        for pattern, rule in rules.items():
            if isinstance(rule, str) and rule.startswith(LOW_RANK):
                choices.append(Choice(pattern, _low_rank(rule), shared=False))
            else:
                choices.append(Choice(pattern, rule, self.shared))  # pyright: ignore - other texts are refused above
        return tuple(choices)

    def choose(self, names: list[str], module: nn.Module) -> Choice | str:
        """The rule for a module, or the reason to skip it."""
        if reason := unselected(self.where, names, module):
            return reason
        found = {self.first(name) for name in names}
        if len(found) > 1:
            return "its names match different rules"
        choice = found.pop()
        if choice is None:
            return "its name matches no pattern of the rules"
        return f"skipped by the rule for {choice.pattern!r}" if choice.rule is None else choice

    def first(self, name: str) -> Choice | None:
        """The first rule whose pattern the name matches."""
        return next((choice for choice in self.choices if fnmatch.fnmatchcase(name, choice.pattern)), None)


def _low_rank(rule: str) -> LowRank:
    """What "low-rank:128" and "low-rank:0.5" name."""
    size = rule.removeprefix(LOW_RANK)
    if size.isdecimal() and int(size):
        return LowRank(int(size))
    if re.fullmatch(r"0?\.\d+", size) and float(size):
        return LowRank(float(size))
    raise ValueError(
        f"low-rank needs a rank, as low-rank:128, or a share of the weights, as low-rank:0.5; got {rule!r}"
    )


def parse_rule(text: str) -> Rule | None:
    """The rule that a text names: "4" (learned, n = 4), "4:7" (at rank 7), "quaternion"; None for "dense".

    Raises:
        ValueError: the text names no rule; says what does.

    Examples:
        >>> parse_rule("4:7")
        LearnedRule(n=4, rank=7)
    """
    if text == "dense":
        return None
    n, colon, rank = text.partition(":")
    try:
        if not n.isdecimal() or not (rank.isdecimal() or not colon):
            return FixedRule(named(text))
        if int(n) < 1 or int(rank or 1) < 1:
            raise ValueError("n and R must be 1 or more")
        if int(n) > 256:  # before memory is asked for
            raise ValueError(f"n = {n} would need a table of {n}^3 numbers; n is at most 256")
        return LearnedRule(int(n), int(rank) if colon else None)
    except ValueError as error:
        raise ValueError(
            f"a rule is dense, a number n (learned), n:R (learned, at rank R) or an algebra's name; "
            f"got {text!r}: {error}"
        ) from None
