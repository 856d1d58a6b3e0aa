"""What is tried: rules by n and rank, algebras by name, one rule for all layers or one for each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nplex.algebra import generic_rank
from nplex.convert import parse_rule
from nplex.nn import LearnedRule

if TYPE_CHECKING:
    from optuna import Trial

RANKS = ("n", "between", "generic", "full")
LARGEST = 256
NOMINAL = 1024


@dataclass(frozen=True)
class Candidate:
    """One rule that may be measured.

    Attributes:
        rule: as on the command line: `dense`, `4`, `4:7`, `quaternion`.
        shared: whether all layers have one.
    """

    rule: str
    shared: bool = False

    @property
    def key(self) -> str:
        """Its name in tables and in the storage."""
        return f"{self.rule} shared" if self.shared else self.rule

    @property
    def code(self) -> str:
        """The line that converts a model to it."""
        rule, more = parse_rule(self.rule), ", shared=True" if self.shared else ""
        if rule is None:
            return "# dense: the model stays as it is"
        if not isinstance(rule, LearnedRule):
            text = f'nplex.algebra.named("{self.rule}")'
        else:
            text = str(rule.n) if rule.rank is None else f"nplex.nn.LearnedRule({rule.n}, rank={rule.rank})"
        return f"nplex.convert_(model, rule={text}{more})"

    @property
    def nominal_parameters(self) -> int:
        """The weights of one layer of 1,024 x 1,024, and its rule's parameters; a shared rule counts as nothing."""
        rule = parse_rule(self.rule)
        if rule is None:
            return NOMINAL**2
        own = 0 if self.shared else sum(p.numel() for p in rule.parameters())
        return rule.n * math.ceil(NOMINAL / rule.n) ** 2 + own


DENSE = Candidate("dense")


@dataclass(frozen=True)
class Space:
    """All rules that may be measured; dense is always one of them.

    Attributes:
        n: sizes of learned rules; 1 stands for dense.
        ranks: of each: `full`, `generic` (nplex.algebra.generic_rank), `n`, and `between` the last two.
        sharing: whether all layers have one rule: False, True, or both.
        algebras: names of fixed rules, as quaternion.
    """

    n: tuple[int, ...] = tuple(range(2, 9))
    ranks: tuple[str, ...] = ("full", "generic", "between", "n")
    sharing: tuple[bool, ...] = (False,)
    algebras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [n for n in self.n if not 1 <= n <= LARGEST]:
            raise ValueError(f"n must be numbers from 1 to {LARGEST}, got {wrong[0]}")
        if unknown := set(self.ranks) - set(RANKS):
            raise ValueError(f"ranks must be some of {', '.join(RANKS)}; got {sorted(unknown)[0]!r}")
        if not self.ranks or not self.sharing:
            raise ValueError("a space needs at least one of ranks and one of sharing")
        for name in self.algebras:
            if name == "dense" or isinstance(parse_rule(name), LearnedRule):
                raise ValueError(f"algebras must be names as quaternion, got {name!r}")
        if len(self.points) < 2:
            raise ValueError("there is nothing to compare with dense: give n above 1, or algebras")

    @cached_property
    def points(self) -> dict[Candidate, dict[str, Any]]:
        """Every candidate, and the first of optuna's parameters that give it; dense first."""
        found: dict[Candidate, dict[str, Any]] = {}
        for kind in self._kinds:
            sizes = range(len(self._sizes)) if kind == "learned" else [0]
            levels = range(len(self._levels)) if kind == "learned" else [0]
            for shared in self.sharing:
                for size in sizes:
                    for level in levels:
                        point: dict[str, Any] = {"kind": kind} if self.algebras else {}
                        point |= {"n": size, "rank": level} if kind == "learned" else {}
                        point |= {"shared": shared} if len(self.sharing) > 1 else {}
                        found.setdefault(self._candidate(point), point)
        return found

    @property
    def start(self) -> list[Candidate]:
        """What is measured before anything is known: dense, then a small, a middle and a large n, powers of two."""
        learned = [n for n in self._sizes[1:] if n & (n - 1) == 0] or self._sizes[1:]
        chosen = {learned[0], learned[len(learned) // 2], learned[-1]} if learned else set()
        level = self._levels[-1]
        first = [Candidate(rule_text(n, level), self.sharing[0]) for n in sorted(chosen)]
        return [DENSE, *(candidate for candidate in first if candidate in self.points)]

    def suggest(self, trial: "Trial") -> Candidate:
        """What optuna's sampler would try next: n and rank are ordered, small before large."""
        point: dict[str, Any] = {}
        if self.algebras:
            point["kind"] = trial.suggest_categorical("kind", self._kinds)
        if point.get("kind", "learned") == "learned":
            point["n"] = trial.suggest_int("n", 0, len(self._sizes) - 1)
            point["rank"] = trial.suggest_int("rank", 0, len(self._levels) - 1)
        if len(self.sharing) > 1:
            point["shared"] = trial.suggest_categorical("shared", self.sharing)
        return self._candidate(point)

    @property
    def _kinds(self) -> tuple[str, ...]:
        return ("learned", *self.algebras)

    @property
    def _sizes(self) -> list[int]:
        """Dense counts as n = 1."""
        return sorted({1, *self.n})

    @property
    def _levels(self) -> list[str]:
        return [level for level in RANKS if level in self.ranks]

    def _candidate(self, point: dict[str, Any]) -> Candidate:
        shared = point.get("shared", self.sharing[0])
        if point.get("kind", "learned") != "learned":
            return Candidate(point["kind"], shared)
        n = self._sizes[point["n"]]
        return DENSE if n == 1 else Candidate(rule_text(n, self._levels[point["rank"]]), shared)


def rule_text(n: int, level: str) -> str:
    """The rule of a size at a level of rank.

    Examples:
        >>> [rule_text(8, level) for level in ("full", "generic", "between", "n")]
        ['8', '8:24', '8:16', '8:8']
    """
    if level == "full":
        return str(n)
    generic = generic_rank(n)
    return f"{n}:{ {'n': n, 'generic': generic, 'between': (n + generic + 1) // 2}[level] }".replace(" ", "")


def parse_sizes(texts: Sequence[str]) -> tuple[int, ...]:
    """Numbers and ranges as people write them.

    Raises:
        ValueError: a text is neither.

    Examples:
        >>> parse_sizes(["2..4", "8"])
        (2, 3, 4, 8)
    """
    found: set[int] = set()
    for text in texts:
        first, dots, last = text.partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()) or (dots and int(last) < int(first)):
            raise ValueError(f"n must be numbers, or a range as 2..8; got {text!r}")
        if int(last or first) > LARGEST:
            raise ValueError(f"n must be numbers from 1 to {LARGEST}, got {text!r}")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))
