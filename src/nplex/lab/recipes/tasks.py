"""All experiments by name."""

from collections.abc import Callable
from typing import Any

from nplex.lab.recipes.agreement import agreement
from nplex.lab.recipes.inference import inference
from nplex.lab.recipes.language import language
from nplex.lab.recipes.style import style
from nplex.lab.recipes.translation import translation

TASKS: dict[str, Callable[..., Any]] = {
    "agreement": agreement, "inference": inference, "translation": translation, "style": style,
    "language": language,
}  # fmt: skip


def recipe_of(task: str, rule: str, *, size: str = "small", set: str = "") -> Any:
    """The recipe of a task by its name.

    Raises:
        ValueError: there is no such task, rule, size or set; says which there are.
    """
    if task not in TASKS:
        raise ValueError(f"there is no task {task!r}; there is {', '.join(TASKS)}")
    return TASKS[task](rule, size=size, set=set)
