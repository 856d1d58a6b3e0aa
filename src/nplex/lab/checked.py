"""JSON that comes back from a folder is looked at before it is used: its kinds, its ranges, its checksum."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from nplex.files import read_json, write_json

CHECKSUM = "checksum"
# What is expected, in words, and whether a value is it.
Kind = tuple[str, Callable[[object], bool]]


def is_number(value: object) -> bool:
    """Whether a JSON value is a number; nan and infinity are, in what a run that diverged wrote."""
    return type(value) in (int, float)


def are_numbers(value: object) -> bool:
    """Whether a JSON value is an object whose values are numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


NUMBER: Kind = ("a number", is_number)
COUNT: Kind = ("a whole number from 0", lambda value: type(value) is int and 0 <= value <= 2**53)
AMOUNT: Kind = (
    "a finite number from 0",
    lambda value: is_number(value) and math.isfinite(value) and value >= 0,  # pyright: ignore[reportArgumentType, reportOperatorIssue]
)
TEXT: Kind = ("a text", lambda value: isinstance(value, str))
TEXTS: Kind = ("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT[1], value)))
OBJECT: Kind = ("an object", lambda value: isinstance(value, dict))


def wrong(values: Mapping[str, object], expected: Mapping[str, Kind]) -> str:
    """What the first wrong value is and what was expected, in words; "" where all are right."""
    for key, (words, fits) in expected.items():
        if key not in values:
            return f"{key} is missing"
        if not fits(values[key]):
            return f"{key} is {values[key]!r:.40}, expected {words}"
    return ""


def sealed(value: dict) -> dict:
    """A JSON object with the checksum of its content."""
    return value | {CHECKSUM: _sum(value)}


def unsealed(value: dict) -> dict:
    """An object without its checksum; one that has none, as older versions wrote, is taken as it is.

    Raises:
        ValueError: the checksum is another one.
    """
    content = {key: each for key, each in value.items() if key != CHECKSUM}
    if CHECKSUM in value and value[CHECKSUM] != _sum(content):
        raise ValueError(f"its content is not what was written; without its {CHECKSUM} it is taken as it is")
    return content


def write_sealed(path: Path, value: dict) -> None:
    """Writes a JSON object with its checksum."""
    write_json(path, sealed(value))


def read_sealed(path: Path) -> dict:
    """Reads what `write_sealed` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged; names it, and what to do.
    """
    try:
        return unsealed(read_json(path))
    except ValueError as error:
        raise error if str(path) in str(error) else damaged(path, error) from None


def damaged(path: Path, why: object) -> ValueError:
    """The error of a file in a run folder that cannot be used."""
    return ValueError(f"{path} is damaged ({why}); delete it and run again with --resume, or with --force")


def _sum(value: dict) -> int:
    return zlib.crc32(json.dumps(value).encode())
