"""What to convert, and to which rule: frozen values, and the text of a rule."""

import copy
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from nplex.algebra import Algebra, real
from nplex.convert.heads import default_reason
from nplex.convert.where import Layers, Where, as_where, fits, is_wild, only_leaves, unselected, with_everything
from nplex.nn import LearnedRule, Rule, as_rule
from nplex.nn.written import LOW_RANK, RuleLike, parse_rule, resolve

__all__ = ["Conversion", "Choice", "LowRank", "Rules", "parse_rule"]

Rules = RuleLike | Mapping[str, RuleLike | None]


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
        pattern: of names, as nplex.only reads it.
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
        rule: n, an algebra, a rule, or these as text, a low rank, a table; each converted layer gets a fresh rule of
            its own like it. Or a mapping from patterns of names to these, in which the first that matches counts
            and None or "dense" means: skip.
        where: which layers; None for all but embeddings, output heads and routers.
        shared: whether all layers of a rule use one, registered at the base of the model as `rule`, `rule_1`, ...
        weights: "fresh" or "nearest".
        everything: whether embeddings, heads and routers are converted too.
    """

    rule: Rules
    where: Layers | None = None
    shared: bool = False
    weights: str = "fresh"
    everything: bool = False

    def __post_init__(self) -> None:
        if self.weights not in ("fresh", "nearest"):
            raise ValueError(f"weights must be fresh or nearest, got {self.weights!r}")
        if isinstance(self.rule, Mapping) and not all(isinstance(key, str) and key for key in self.rule or [""]):
            raise TypeError(
                f'a mapping of rules needs patterns, as in {{"encoder.*": 4, "*": None}}, got {self.rule}'
            )
        _ = self.choices, self.condition  # refused here

    @cached_property
    def condition(self) -> Where | None:
        """What `where` says, as a function."""
        where = as_where(self.where)
        return with_everything(where) if self.everything else where

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """All rules, in the order in which they are tried."""
        if not isinstance(self.rule, Mapping):
            if isinstance(self.rule, str) and self.rule == "dense":
                raise ValueError("dense converts nothing; give a rule, as 4, '4:7' or 'quaternion'")
            return (_choice("*", self.rule, self.shared),)
        choices = []
        for pattern, rule in self.rule.items():
            try:
                choices.append(Choice(pattern, None, False) if rule is None else _choice(pattern, rule, self.shared))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{pattern!r}: {error}") from None
        return tuple(choices)

    def choose(self, names: list[str], module: nn.Module, head: str = "") -> Choice | str:
        """The rule for a module, or the reason to skip it; with the reason why it is a head whatever its name."""
        if reason := unselected(self.condition, names, module):
            return reason
        found = {self.first(name) for name in names}
        if len(found) > 1:
            return "its names match different rules"
        choice = found.pop()
        if choice is None:
            return "its name matches no pattern of the rules"
        if choice.rule is None:
            return f"skipped by the rule for {choice.pattern!r}"
        return self._default(choice, names, module, head) or choice

    def first(self, name: str) -> Choice | None:
        """The first rule whose pattern the name matches."""
        return next((choice for choice in self.choices if fits(name, choice.pattern)), None)

    def _default(self, choice: Choice, names: list[str], module: nn.Module, head: str) -> str:
        """Why a layer is skipped by default, or nothing; one that is named in a mapping of rules is asked for."""
        is_named = not is_wild(choice.pattern) and not names[0].startswith(f"{choice.pattern}.")
        if self.everything or is_named or not only_leaves(self.condition):
            return ""
        return next((reason for name in names if (reason := default_reason(name, module))), head)


def _choice(pattern: str, rule: RuleLike, shared: bool) -> Choice:
    """One rule, however it is written."""
    if isinstance(rule, str) and rule.startswith(LOW_RANK):
        return Choice(pattern, _low_rank(rule), shared=False)
    found = resolve(rule)
    choice = Choice(pattern, LearnedRule(*found, device="meta") if isinstance(found, tuple) else found, shared)
    _ = found is None or choice.template  # refused here
    return choice


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
