"""The settings of a run as fields of dataclasses: which there are, what each may be, and its value from a text."""

import math
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from nplex.lab.checked import is_number

FROM_ZERO = ("batch_tokens", "patience", "checkpoint_every")  # whole numbers; all others begin at 1
SHARES = ("dropout", "label_smoothing", "warmup")  # at most 1
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def settable(kind: type) -> dict[str, Any]:
    """The fields of a dataclass that a text can set, and the type of each."""
    hints = get_type_hints(kind)
    found = {field.name: hints[field.name] for field in fields(kind)}
    return {name: hint for name, hint in found.items() if hint in PLAIN or get_origin(hint) is Literal}


def value_of(name: str, hint: Any, given: object) -> Any:
    """The value of a setting from a text, or from a file that has types.

    Raises:
        ValueError: it is of another type; says which is expected.
    """
    try:
        if isinstance(given, str) and hint in (int, float):
            return hint(given)
        if isinstance(given, str) and hint is bool:
            return {"true": True, "false": False}[given]
    except (ValueError, KeyError):
        raise ValueError(f"{name} must be {_expected(name, hint)}, got {given!r:.40}") from None
    return float(given) if hint is float and is_number(given) else given  # pyright: ignore[reportArgumentType]


def check_fields(values: Any) -> None:
    """Looks at the numbers and choices of a dataclass.

    Raises:
        ValueError: one is of another type or out of range; says what is expected.
    """
    for name, hint in settable(type(values)).items():
        if not _fits(name, hint, value := getattr(values, name)):
            raise ValueError(f"{name} must be {_expected(name, hint)}, got {value!r:.40}")


def _fits(name: str, hint: Any, value: Any) -> bool:
    if hint is float:
        return is_number(value) and math.isfinite(value) and 0 <= value <= (1 if name in SHARES else math.inf)
    if hint is int:
        return type(value) is int and (name not in FROM_ZERO) <= value < 2**31
    return type(value) is hint if hint in PLAIN else value in get_args(hint)


def _expected(name: str, hint: Any) -> str:
    if hint not in PLAIN:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    least = {int: f" from {int(name not in FROM_ZERO)}", float: " from 0"}.get(hint, "")
    return PLAIN[hint] + least + (" to 1" if name in SHARES else "")
