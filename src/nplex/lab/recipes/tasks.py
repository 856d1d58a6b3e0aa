"""All experiments by name."""

from collections.abc import Callable

from nplex.lab.recipes.language_modelling import language
from nplex.lab.recipes.machine_translation import translation
from nplex.lab.recipes.natural_language_inference import inference
from nplex.lab.recipes.recipe import Recipe
from nplex.lab.recipes.style_transfer import style
from nplex.lab.recipes.subject_verb_agreement import agreement

TASKS: dict[str, Callable[..., Recipe]] = {
    "agreement": agreement, "inference": inference, "translation": translation, "style": style,
    "language": language,
}  # fmt: skip


def recipe_of(task: str, rule: str, *, size: str = "small", set: str = "") -> Recipe:
    """The recipe of a task by its name.

    Raises:
        ValueError: there is no such task, rule, size or set; says which there are.
        OSError: the rule is a file that cannot be read.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose from {', '.join(TASKS)}")
    return TASKS[task](size=size, set=set).with_rule(rule)
