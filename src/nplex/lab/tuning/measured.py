"""What a function that is tuned gets and gives, and what matters."""

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from nplex.lab.tuning.space import Candidate

GOALS = ("size", "quality", "speed")


class Pruned(Exception):
    """The rule that is being measured cannot win any more; a function lets this pass."""


@runtime_checkable
class Progress(Protocol):
    """What a function calls with its score so far, as after each epoch; it raises Pruned."""

    def __call__(self, score: float, seconds: float | None = None) -> None: ...  # noqa: D102 - told above


@dataclass(frozen=True)
class Measured:
    """A rule that was measured.

    Attributes:
        score: its quality.
        parameters: of the layers that were converted; None counts one layer of 1,024 x 1,024.
        seconds: the smaller, the faster; None for the time that the function took.
        low: lower end of the 95 % interval of the score; None where there is none.
        high: upper end.
    """

    score: float
    parameters: int | None = None
    seconds: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Goals:
    """What matters.

    Attributes:
        which: quality, and any of size and speed.
        lower: whether a lower score is the better one.
        margin: how far below dense a score may lie; None for the interval of dense, or 0 where it has none.
    """

    which: tuple[str, ...] = GOALS
    lower: bool = False
    margin: float | None = None

    def __post_init__(self) -> None:
        if unknown := [goal for goal in self.which if goal not in GOALS]:
            raise ValueError(f"goals must be some of {', '.join(GOALS)}; got {unknown[0]!r}")
        if "quality" not in self.which or len(set(self.which)) < len(self.which):
            raise ValueError(f"goals must hold quality, each once; got {' '.join(self.which) or 'none'}")
        if self.margin is not None and not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin must be a number of 0 or more, got {self.margin}")

    def gain(self, score: float, other: float) -> float:
        """How much better a score is than another."""
        return other - score if self.lower else score - other

    def allowance(self, dense: Measured) -> float:
        """How far below dense is still as good as dense."""
        if self.margin is not None:
            return self.margin
        worse_end = dense.high if self.lower else dense.low
        return 0.0 if worse_end is None else max(0.0, self.gain(dense.score, worse_end))

    def values(self, measured: Measured) -> tuple[float, ...]:
        """In the order of `which`."""
        every = {"size": measured.parameters, "quality": measured.score, "speed": measured.seconds}
        return tuple(float(every[goal] or 0.0) for goal in self.which)

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """In the order of `which`, as optuna calls them."""
        return ["maximize" if goal == "quality" and not self.lower else "minimize" for goal in self.which]


@dataclass(frozen=True)
class Budget:
    """When it ends: at the first limit that is met.

    Attributes:
        trials: different rules measured in all, stopped and failed ones and those of earlier calls counted.
        minutes: no rule is begun after that time; those that are being measured are finished.
        prune: whether rules that cannot win any more are stopped.
    """

    trials: int = 12
    minutes: float | None = None
    prune: bool = True

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise ValueError(f"a budget needs 1 trial or more, got {self.trials}")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise ValueError(f"a budget needs minutes above 0, got {self.minutes}")


def call(objective: Callable[..., Any], candidate: Candidate, report: Progress) -> Measured:
    """Calls a function with the rule, and with `shared` and `report` where it takes them.

    Raises:
        TypeError: it gave neither a number nor a Measured.
        ValueError: the number is not finite.
    """
    every = {"shared": candidate.shared, "report": report}
    result = objective(candidate.rule, **{name: value for name, value in every.items() if takes(objective, name)})
    if isinstance(result, Measured):
        measured = result
    else:
        try:
            measured = Measured(float(result))
        except (TypeError, ValueError):
            raise TypeError(
                f"the function must return a number or nplex.lab.tuning.Measured, got {type(result).__name__}"
            ) from None
    numbers = (measured.score, measured.parameters, measured.seconds, measured.low, measured.high)
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError(f"the function must return finite numbers, got {measured}")
    return measured


def takes(objective: Callable[..., Any], name: str) -> bool:
    """Whether a function has an argument of that name."""
    return name in inspect.signature(objective).parameters


def load_function(text: str) -> Callable[..., Any]:
    """The function that `module:name` names.

    Raises:
        ValueError: there is none.
    """
    module_name, _, name = text.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ValueError(f"{text!r} names no function, expected my_module:my_function: {error}") from None
    if not callable(found):
        raise ValueError(f"{text!r} must be a function, got a {type(found).__name__}")
    return found
