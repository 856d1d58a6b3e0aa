"""A function of one's own that gives the score of a rule, in the place of a recipe."""

import math
import random
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from nplex.algebra import named
from nplex.convert import parse_rule
from nplex.lab.recipes.recipe import Data
from nplex.stored_rules import table_of_json

DENSE = "dense"


@dataclass(frozen=True)
class Measured:
    """What a function that is tuned returns.

    Attributes:
        score: the rule's quality.
        parameters: of the converted layers; None counts one layer of 1,024 x 1,024.
        seconds: the smaller, the faster; None for the time that the function took.
        low: lower end of the 95 % interval of the score; None where there is none.
        high: upper end.
        arguments: of nplex.convert_, as Python, for the line of code: `where=nplex.only("blocks.*")`.
    """

    score: float
    parameters: int | None = None
    seconds: float | None = None
    low: float | None = None
    high: float | None = None
    arguments: str = ""

    @property
    def ends(self) -> tuple[float, float]:
        """Of the interval; the score where there is none."""
        low, high = self.low, self.high
        return self.score if low is None else low, self.score if high is None else high


@dataclass(frozen=True)
class Scored:
    """A function with a rule, as `nplex run` and `nplex compare` take a recipe.

    Attributes:
        task_name: my_module:my_function.
        function: called with the rule's text; gives its score, or a Measured.
        rule: as on the command line.
    """

    task_name: str
    function: Callable[[str], Any]
    rule: str = DENSE

    def with_rule(self, rule: str) -> "Scored":
        """The same with another rule.

        Raises:
            ValueError: the text names no rule, or a file holds none.
            OSError: the file cannot be read.
        """
        _ = table_of_json(Path(rule)) if rule.endswith(".json") else parse_rule(rule)
        return replace(self, rule=rule)

    def load(self, folder: Path | None) -> Data:
        """Nothing: what is read is the function's own."""
        return Data(Path(), (), None, None, None, None)

    def baseline(self, data: Data) -> tuple[str, dict[str, float]]:
        """None is known."""
        return "", {}

    def measured(self, seed: int) -> dict:
        """What result.json tells of a run; what a function does not tell is 0.

        Raises:
            ValueError: the function fails; says how.
        """
        try:
            found = measure(self.function, self.rule, seed)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise ValueError(f"{self.task_name} failed with rule {self.rule}, {why}; --debug shows where") from error
        known = nominal_parameters(DENSE) if found.parameters == nominal_parameters(self.rule) else 0
        return {
            "layer_parameters": found.parameters, "dense_layer_parameters": known, "parameters": found.parameters,
            "kind": "score", "scores": {"score": found.score}, "interval": found.ends, "answers": [repr(found.score)],
            "examples": 1, "notes": {}, "training_seconds": found.seconds, "training_tokens_per_second": 0,
            "testing_tokens_per_second": 0, "history": [],
        }  # fmt: skip


def measure(objective: Callable[[str], Any], rule: str, seed: int = 0) -> Measured:
    """Calls a function under random numbers seeded by the rule's text and a seed, and fills in what it left out.

    Raises:
        TypeError: it gave neither a number nor a Measured.
        ValueError: a number is not finite.
    """
    began = time.perf_counter()
    with _random_numbers((zlib.crc32(rule.encode()) + seed) % 2**32):
        result = objective(rule)
    try:
        found = result if isinstance(result, Measured) else Measured(float(result))
    except (TypeError, ValueError):
        got = type(result).__name__
        raise TypeError(f"the function must return a number or nplex.lab.tuning.Measured, got {got}") from None
    parameters = nominal_parameters(rule) if found.parameters is None else found.parameters
    seconds = time.perf_counter() - began if found.seconds is None else found.seconds
    if not all(map(math.isfinite, [found.score, parameters, seconds, found.low or 0.0, found.high or 0.0])):
        raise ValueError(f"the function must return finite numbers, got {found}")
    return replace(found, parameters=parameters, seconds=seconds)


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seeds the generators of torch, Python and numpy; afterwards they are as they were."""
    import numpy as np

    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        for seeded in (torch.manual_seed, random.seed, np.random.seed):
            seeded(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def nominal_parameters(rule: str) -> int:
    """The parameters of one layer of 1,024 x 1,024 with a rule, the rule's own included."""
    if rule == DENSE:
        return 1024**2
    text, _, rank = rule.partition(":")
    if not text.isdecimal():
        n = len(table_of_json(Path(rule))) if rule.endswith(".json") else named(text).n
        return n * math.ceil(1024 / n) ** 2
    n = int(text)
    return n * math.ceil(1024 / n) ** 2 + (3 * n * int(rank) if rank else n**3)
