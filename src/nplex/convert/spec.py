"""What to convert, and to which rule: a frozen value, and helpers that say it briefly."""

import copy
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from nplex.algebra import Algebra, named
from nplex.nn import FixedRule, LearnedRule, Rule, as_rule

Where = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class Conversion:
    """Which layers get which rule.

    Attributes:
        rule: n, an algebra, or a rule; each converted layer gets a fresh rule of its own like it.
        where: which layers, by name and module; None for all.
        shared: whether all converted layers use one rule, registered at the base of the model as `rule`.
    """

    rule: int | Algebra | Rule
    where: Where | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        as_rule(self.rule, device="meta")
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where must be a function of name and module, as nplex.only gives, got {self.where!r}")

    @property
    def shares(self) -> bool:
        """Whether all converted layers use one rule."""
        return self.shared or self._given

    @property
    def registers(self) -> bool:
        """Whether a shared rule is still to be registered: it is one that no base holds yet."""
        return self.shared and not self._given

    @property
    def _given(self) -> bool:
        return isinstance(self.rule, Rule) and self.rule.place == "shared"

    @property
    def template(self) -> Rule:
        """The rule that each layer's own is like."""
        return as_rule(self.rule, device="meta")

    def fresh_rule(self, device: torch.device, dtype: torch.dtype) -> Rule:
        """A free rule with first values, on a device."""
        if not isinstance(self.rule, Rule):
            return as_rule(self.rule, device=device, dtype=dtype)
        rule = copy.deepcopy(self.rule).to_empty(device=device).to(dtype)
        rule.reset_parameters()
        return rule


def only(*patterns: str) -> Where:
    """Takes layers whose full name matches one of the patterns: `only("encoder.*", "*.linear1")`.

    `*` stands for any characters, dots too, as in the shell's patterns (fnmatch, case counts).
    """
    _check_patterns("only", patterns)
    return lambda name, module: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def all_but(*patterns: str) -> Where:
    """Takes layers whose full name matches none of the patterns: `all_but("lm_head", "*.classifier")`."""
    _check_patterns("all_but", patterns)
    return lambda name, module: not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


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
        if n.isdecimal() and (rank.isdecimal() or not colon):
            _check_size(int(n), int(rank or 1))
            return LearnedRule(int(n), int(rank) if colon else None)
        return FixedRule(named(text))
    except ValueError as error:
        raise ValueError(
            f"a rule is dense, a number n (learned), n:R (learned, at rank R) or an algebra's name; "
            f"got {text!r}: {error}"
        ) from None


def _check_size(n: int, rank: int) -> None:
    """Refuses what was mistyped, before memory is asked for."""
    if n < 1 or rank < 1:
        raise ValueError("n and R must be 1 or more")
    if n > 256:
        raise ValueError(f"n = {n} would need a table of {n}^3 numbers; n is at most 256")


def _check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    """Refuses an empty call, which would mean nothing."""
    if not patterns:
        raise ValueError(f'{name} needs at least one pattern, as in {name}("encoder.*"), got none')
