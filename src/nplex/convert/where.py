"""Which layers: functions of name and module, and what they answer."""

import fnmatch
from collections.abc import Callable

from torch import nn

Where = Callable[[str, nn.Module], bool | str]
NOT_SELECTED = "not selected by where"
EMBEDDINGS = "embeddings change only where `where` asks for them"


def only(*patterns: str) -> Where:
    """Takes layers whose full name matches one of the patterns: `only("encoder.*", "*.linear1")`.

    `*` stands for any characters, dots too, as in the shell's patterns (fnmatch, case counts). Embeddings that match
    are taken too.
    """
    _check_patterns("only", patterns)
    return lambda name, module: _matches(name, patterns)


def all_but(*patterns: str) -> Where:
    """Takes layers whose full name matches none of the patterns: `all_but("lm_head", "*.classifier")`.

    It takes no embeddings: these must be asked for, by `only` or a function.
    """
    _check_patterns("all_but", patterns)
    return lambda name, module: not _matches(name, patterns) and (not is_embedding(module) or EMBEDDINGS)


def all_of(*conditions: Where) -> Where:
    """Takes layers that all conditions take: `all_of(only("encoder.*"), sensible)`; the first refusal is told."""
    if not conditions or not all(map(callable, conditions)):
        raise TypeError(f'all_of needs conditions, as in all_of(only("encoder.*"), sensible), got {conditions!r}')

    def where(name: str, module: nn.Module) -> bool | str:
        answers = (condition(name, module) for condition in conditions)
        return next((answer for answer in answers if not is_yes(answer)), True)

    return where


def unselected(where: Where | None, names: list[str], module: nn.Module) -> str:
    """The reason why `where` leaves a module, or nothing; a module with several names is taken if all are."""
    if where is None:
        return EMBEDDINGS * is_embedding(module)
    for name in names:
        answer = where(name, module)
        if isinstance(answer, str) and answer:
            return answer
        if not answer:
            return NOT_SELECTED + " under all its names" * (len(names) > 1)
    return ""


def is_yes(answer: bool | str) -> bool:
    """A text is a reason to stay, not a yes."""
    return bool(answer) and not isinstance(answer, str)


def is_embedding(module: nn.Module) -> bool:
    """Whether it is one of torch's embeddings."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(name: str, patterns: tuple[str, ...]) -> None:
    """Refuses an empty call, which would mean nothing."""
    if not patterns:
        raise ValueError(f'{name} needs at least one pattern, as in {name}("encoder.*"), got none')
