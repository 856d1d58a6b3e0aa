"""The settings of a recipe: changed by name, and read back from the settings.json of a run."""

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from nplex.lab.fields import settable, value_of
from nplex.lab.recipes.recipe import Recipe
from nplex.lab.train import Schedule

OPTIONS = ("rule", "shared", "set", "table")  # have options of their own


def names(kind: type[Recipe]) -> dict[str, Any]:
    """The settings of a recipe and of its schedule, by name, and the type of each."""
    own = {name: hint for name, hint in settable(kind).items() if name not in OPTIONS}
    return settable(Schedule) | own


def changed(recipe: Recipe, given: Mapping[str, object]) -> Recipe:
    """A recipe with other settings, of its model or of its schedule.

    Raises:
        ValueError: a name is unknown, or a value is of another type or out of range; says what is expected.
    """
    known = names(type(recipe))
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"unknown setting {unknown[0]!r}; choose from {', '.join(sorted(known))}")
    values = {name: value_of(name, known[name], value) for name, value in given.items()}
    own = {name: value for name, value in values.items() if hasattr(recipe, name)}
    schedule = {name: value for name, value in values.items() if name not in own}
    return replace(recipe, schedule=replace(recipe.schedule, **schedule), **own)


def settings_from(file: Path | None, pairs: Sequence[str]) -> dict[str, Any]:
    """The settings of a TOML file, then those of texts as `learning_rate=2e-3`, which count before it.

    Raises:
        ValueError: the file is no TOML, or a setting is given twice.
        OSError: the file cannot be read.
    """
    try:
        found: dict[str, Any] = {} if file is None else tomllib.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged, expected TOML with a setting a line, as epochs = 3: {error}") from None
    split = [(name.strip(), value.strip()) for name, _, value in (pair.partition("=") for pair in pairs)]
    if twice := [name for name, count in Counter(name for name, _ in split).items() if count > 1]:
        raise ValueError(f"{twice[0]} is given twice")
    return found | dict(split)


def recipe_from(kind: type[Recipe], values: dict[str, Any]) -> Recipe:
    """The recipe whose settings a run keeps.

    Raises:
        ValueError: a setting is unknown, or of another type; says which.
    """
    schedule = values.get("schedule")
    if not isinstance(schedule, dict):
        raise ValueError(f"schedule is {schedule!r:.40}, expected an object")
    for given, owner in ((values, kind), (schedule, Schedule)):
        if unknown := sorted(given.keys() - {field.name for field in fields(owner)}):
            raise ValueError(f"{unknown[0]} is not a setting of {owner.__name__}")
    try:
        found: dict[str, Any] = values | {"schedule": Schedule(**schedule)}
        return kind(**found)
    except (TypeError, KeyError) as error:
        raise ValueError(str(error)) from None
