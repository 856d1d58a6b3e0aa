"""Rules as people write them: numbers, texts, tables of numbers, JSON files with one."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import Algebra, named
from nplex.algebra.table import Array
from nplex.nn.rule import FixedRule, LearnedRule, Rule

RuleLike = SupportsIndex | str | os.PathLike[str] | Algebra | Rule | Array | Sequence
LOW_RANK = "low-rank:"
MOST = 256


def as_rule(
    rule: RuleLike,
    *,
    power: float = 1.5,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Rule:
    """A whole number n becomes a LearnedRule of norm `n^power`, an algebra a FixedRule, a rule stays itself.

    A text is what the command line takes: "4" as the number, "4:7" at rank 7, "quaternion" the algebra. A table of
    n x n x n numbers (tensor, array, nested lists) is an algebra, and so is the .json file that holds one.

    Raises:
        TypeError: it is none of these; a bool is not a number here.
        ValueError: the number is not positive, the text names no rule, or the table is not a finite cube.
        FileNotFoundError: there is no such file.

    Examples:
        >>> as_rule("4:7"), as_rule("quaternion")
        (LearnedRule(n=4, rank=7), FixedRule(quaternion, rank=8))
    """
    found = resolve(rule)
    if isinstance(found, Rule):
        return found
    if isinstance(found, Algebra):
        return FixedRule(found, device=device, dtype=dtype)
    if found is None:
        raise ValueError("dense is not a rule: take torch.nn's layer for that")
    n, rank = found if isinstance(found, tuple) else (found, None)
    return LearnedRule(n, rank, norm=n**power, device=device, dtype=dtype)


def resolve(rule: Any) -> int | tuple[int, int] | Algebra | Rule | None:
    """What is meant: n, n and rank, an algebra, a rule; None for "dense".

    Raises:
        TypeError: as as_rule.
        ValueError: as as_rule.
        FileNotFoundError: as as_rule.
    """
    if isinstance(rule, Algebra | Rule):
        return rule
    if isinstance(rule, os.PathLike) or (isinstance(rule, str) and rule.endswith(".json")):
        path = Path(rule)
        return Algebra.from_table(table_of_json(path), path.stem)
    if isinstance(rule, str):
        return _resolve_text(rule)
    if isinstance(rule, list | tuple) or (isinstance(rule, Array) and getattr(rule, "ndim", 0)):
        try:
            return Algebra.from_table(rule)
        except (TypeError, RuntimeError, NotImplementedError) as error:
            raise ValueError(f"a table is n x n x n real numbers: {error}") from None
    kinds = 'or a text as "4:7" or "quaternion", n x n x n numbers, or a .json file of them'
    if isinstance(rule, bool) or not isinstance(rule, SupportsIndex):
        raise TypeError(f"rule must be a positive integer, an Algebra or a Rule, got {rule!r}; {kinds}")
    if (n := rule.__index__()) < 1:
        raise ValueError(f"rule must be a positive integer, an Algebra or a Rule, got {n}; {kinds}")
    return n


def parse_rule(text: str) -> Rule | None:
    """The rule that a text names: "4" (learned, n = 4), "4:7" (at rank 7), "quaternion"; None for "dense".

    Raises:
        ValueError: the text names no rule; says what does.

    Examples:
        >>> parse_rule("4:7")
        LearnedRule(n=4, rank=7)
    """
    return None if _resolve_text(text) is None else as_rule(text)


def table_of_json(path: Path) -> Float[Tensor, "n n n"]:
    """The table of a JSON file, `[k][i][j]` as nested lists, alone or under "table".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or holds no cube of finite numbers.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file, expected JSON with n x n x n numbers") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, expected JSON with n x n x n numbers: {error}") from None
    table = value.get("table") if isinstance(value, dict) else value
    if not isinstance(table, list):
        raise ValueError(f'{path}: expected n x n x n numbers as nested lists, alone or under "table"')
    try:
        return Algebra.from_table(table).table
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _resolve_text(text: str) -> int | tuple[int, int] | Algebra | None:
    if text == "dense":
        return None
    n, colon, rank = text.partition(":")
    try:
        if text.startswith(LOW_RANK):
            raise ValueError("low rank is for nplex.convert_ and preview; as a layer it is nplex.nn.LowRankLinear")
        if not n.isdecimal() or not (rank.isdecimal() or not colon):
            return named(text)
        if int(n) < 1 or int(rank or 1) < 1:
            raise ValueError("n and R must be 1 or more")
        if int(n) > MOST:  # before memory is asked for
            raise ValueError(f"n = {n} would need a table of {n}^3 numbers; n is at most {MOST}")
        if int(rank or 1) > int(n) ** 2:
            raise ValueError(f"R = {rank} is above n^2 = {int(n) ** 2}, with which every table can be had")
        return (int(n), int(rank)) if colon else int(n)
    except ValueError as error:
        raise ValueError(
            f"a rule is dense, a number n (learned), n:R (learned, at rank R) or an algebra's name; "
            f"got {text!r}: {error}"
        ) from None
