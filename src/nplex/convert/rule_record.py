"""A rule as plain JSON data, and back; what comes from a file is checked before memory is asked for."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from nplex.algebra import Algebra, BilinearAlgorithm, known_algorithm, named
from nplex.nn import FixedRule, LearnedRule, Rule
from nplex.ops.tracing import real_numbers

MOST = 256
_LEARNED = {"n", "rank", "learned"}
_FIXED = {"algebra", "rank", "units", "table", "conjugation", "algorithm"}


@dataclass(frozen=True)
class StoredRule:
    """How a rule is made.

    Attributes:
        data: the checked description, as rule_record gives it.
        algebra: of a fixed rule, else None.
        algorithm: the factors of a fixed rule that has others than the known ones, else None.
    """

    data: dict[str, Any]
    algebra: Algebra | None = None
    algorithm: BilinearAlgorithm | None = None

    def make(self, device: torch.device, dtype: torch.dtype) -> Rule:
        """A free rule with first values.

        Raises:
            ValueError: the algebra is held as other factors by this version of nplex.
        """
        if self.algebra is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a rank below n, told when the rule was made
                return LearnedRule(self.data["n"], self.data["rank"], device=device, dtype=dtype)
        rule = FixedRule(self.algebra, algorithm=self.algorithm, device=device, dtype=dtype)
        if rule.rank != self.data["rank"]:
            raise ValueError(
                f"{self.algebra.name} was held at rank {self.data['rank']}, this nplex holds it at {rule.rank}; read "
                f"the file with the version of nplex that wrote it"
            )
        return rule

    def fits(self, rule: Rule) -> bool:
        """Whether a rule holds the same kind of numbers, be it trained or frozen."""
        return rule_record(rule) | {"learned": True} == self.data | {"learned": True}

    @property
    def n(self) -> int:
        """The dimension of the algebra."""
        return self.data["n"] if self.algebra is None else self.algebra.n

    @property
    def is_frozen(self) -> bool:
        """Whether its parameters are not trained; a fixed rule has none."""
        return self.data.get("learned") is False


def rule_record(rule: Rule) -> dict[str, Any]:
    """A rule as JSON data, without the numbers that a state dict holds.

    `{"n": 4, "rank": None, "learned": True}` for a learned rule (False for a frozen one), `{"algebra": "quaternion",
    "rank": 8}` for a ready algebra; a user's own has its table too, and factors that are not on file are there.

    Raises:
        ValueError: it is a rule of the user's own class, or its numbers are parametrized.

    Examples:
        >>> rule_record(LearnedRule(4, rank=7))
        {'n': 4, 'rank': 7, 'learned': True}
    """
    if type(rule) is LearnedRule:
        return {"n": rule.n, "rank": rule.rank, "learned": any(p.requires_grad for p in rule.parameters())}
    if type(rule) is not FixedRule:
        raise ValueError(
            f"a rule of class {type(rule).__name__} cannot be written: only LearnedRule and FixedRule can, without "
            f"parametrizations; save model.state_dict() instead"
        )
    algebra = rule.algebra
    data: dict[str, Any] = {"algebra": algebra.name, "rank": rule.rank}
    if not _is_ready(algebra):
        data |= {"units": list(algebra.units), "table": _short(algebra.entries)}
        if algebra.conjugation is not None:
            data["conjugation"] = _short(algebra.conjugation)
    with real_numbers():
        known = known_algorithm(algebra)
        ready = None if known is None else {name: factor.tolist() for name, factor in known._asdict().items()}
    if rule.rank is not None and rule._values != ready:
        data["algorithm"] = {name: _short(factor) for name, factor in rule._values.items()}
    return data


def read_rule(data: Any) -> StoredRule:
    """How to make a rule that rule_record wrote.

    Raises:
        ValueError: it is damaged or hostile; says what was expected and what came.
    """
    if isinstance(data, dict) and data.keys() == _LEARNED:
        n = _whole("n", data["n"], MOST)
        if data["rank"] is not None:
            _whole("rank", data["rank"], n * n)
        if not isinstance(data["learned"], bool):
            raise ValueError(f"learned must be true or false, got {data['learned']!r}")
        return StoredRule(data)
    if not isinstance(data, dict) or not {"algebra", "rank"} <= data.keys() <= _FIXED:
        keys = sorted(data) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"a rule has n, rank and learned, or algebra and rank; got {keys}")
    try:
        with torch.device("cpu"):
            algebra = _algebra(data)
            algorithm = None
            if "algorithm" in data:
                rank = _whole("rank", data["rank"], algebra.n**2)
                algorithm = _factors(data["algorithm"], algebra.n, rank)
                if not algorithm.error(algebra.table) <= 1e-9:
                    raise ValueError("its factors do not give its table")
    except (TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"the algebra {data['algebra']!r} is damaged: {error}") from None
    if data["rank"] is not None:
        _whole("rank", data["rank"], algebra.n**2)
    return StoredRule(data, algebra, algorithm)


def _is_ready(algebra: Algebra) -> bool:
    """Whether its name alone gives its table."""
    try:
        return named(algebra.name) == algebra
    except ValueError:
        return False


def _algebra(data: dict[str, Any]) -> Algebra:
    """By its name, or from its own table."""
    if not isinstance(data["algebra"], str):
        raise ValueError(f"the name of an algebra must be a text, got {data['algebra']!r}")
    if "table" not in data:
        return named(data["algebra"])
    units = data.get("units")
    if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units):
        raise ValueError(f"units must be a list of texts, got {type(units).__name__}")
    _whole("the number of units", len(units), MOST)
    conjugation = data.get("conjugation")
    if conjugation is not None:
        conjugation = tuple(tuple(float(entry) for entry in row) for row in conjugation)
    plain = Algebra.from_table(data["table"], data["algebra"], units)
    return Algebra(plain.name, plain.entries, plain.units, conjugation)


def _factors(data: Any, n: int, rank: int) -> BilinearAlgorithm:
    """Three n x rank matrices."""
    if not isinstance(data, dict) or data.keys() != set(BilinearAlgorithm._fields):
        raise ValueError(f"an algorithm has {', '.join(BilinearAlgorithm._fields)}")
    factors = {name: torch.tensor(value, dtype=torch.float64, device="cpu") for name, value in data.items()}
    for name, factor in factors.items():
        if factor.shape != (n, rank):
            raise ValueError(f"{name} must have {n} x {rank} numbers, got shape {tuple(factor.shape)}")
    return BilinearAlgorithm(**factors)


def _whole(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ValueError(f"{name} must be a whole number from 1 to {most}, got {value!r}")
    return value


def _short(numbers: Any) -> Any:
    """Nested lists in which whole numbers are written without a point."""
    if isinstance(numbers, (list, tuple)):
        return [_short(number) for number in numbers]
    return int(numbers) if numbers.is_integer() else numbers
