"""Which layers: functions of name and module that answer True, False, or the reason to skip a layer.

By default every layer but embeddings, output heads and routers. Conditions that name what they take (patterns, own
functions) take these too; those that only say what they leave (`all_but`, `sensible`) leave them as well.
"""

import fnmatch
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from nplex.convert.heads import default_reason

Where = Callable[[str, nn.Module], bool | str]
Layers = Where | str | Iterable[str]
NOT_SELECTED = "not selected by where"
TINY = 2**12
IMAGE = 8


def only(*patterns: str | Iterable[str]) -> Where:
    """Takes layers whose name fits one of the patterns: `only("encoder", "*.linear1")`, or of a list.

    A name is that of a layer, whole or its end after a dot, or of a module with all layers in it, whole. With `*`
    (any characters, dots too), `?` or `[...]` it is a pattern for whole names (fnmatch, case counts). Embeddings and
    heads that fit are taken too.
    """
    return _Only(_patterns("only", patterns))


@dataclass(frozen=True)
class _Only:
    """What `only` gives; prints as the code that makes it."""

    patterns: tuple[str, ...]

    def __call__(self, name: str, module: nn.Module) -> bool:
        return _fits_any(name, self.patterns)

    def __repr__(self) -> str:
        return f"nplex.only({', '.join(map(json.dumps, self.patterns))})"


def all_but(*patterns: str | Iterable[str]) -> Where:
    """Takes layers whose name fits none of the patterns, as `only` reads them: `all_but("lm_head", "*.gate")`.

    It takes no embeddings and no heads: these must be asked for, by `only`, a function, or everything=True.
    """
    return _AllBut(_patterns("all_but", patterns))


@dataclass(frozen=True)
class _AllBut:
    """What `all_but` gives."""

    patterns: tuple[str, ...]
    everything: bool = False

    def __call__(self, name: str, module: nn.Module) -> bool | str:
        return not _fits_any(name, self.patterns) and (self.everything or default_reason(name, module) or True)


def all_of(*conditions: Where) -> Where:
    """Takes layers that all conditions take: `all_of(only("encoder.*"), sensible)`; the first refusal counts."""
    if not conditions or not all(map(callable, conditions)):
        raise TypeError(f'all_of needs conditions, as in all_of(only("encoder.*"), sensible), got {conditions!r}')
    return _AllOf(conditions)


@dataclass(frozen=True)
class _AllOf:
    """What `all_of` gives."""

    conditions: tuple[Where, ...]

    def __call__(self, name: str, module: nn.Module) -> bool | str:
        answers = (condition(name, module) for condition in self.conditions)
        return next((answer for answer in answers if not is_yes(answer)), True)


def sensible(name: str, module: nn.Module) -> bool | str:
    """Takes layers that are worth converting; the preview has the reason for each that is not.

    Skipped are what is skipped by default: embeddings; output heads (by their names: `lm_head`, `classifier`,
    `score`, `qa_outputs`, `cls`, `head`, `*_head`, `logits`, outermost `fc`, `proj_out`, `conv_out`); routers of
    mixtures of experts (`router`, `gate` with at most a quarter as many outputs as inputs). And layers with fewer
    than 4096 weights; convolutions from or to fewer than 8 channels, as an image has; depthwise convolutions.
    Narrow it by `all_of(sensible, only("encoder.*"))`.

    Examples:
        >>> sensible("lm_head", nn.Linear(512, 32000)), sensible("layers.0.up", nn.Linear(512, 2048))
        ('an output head by its name (lm_head)', True)
    """
    if reason := default_reason(name, module):
        return reason
    weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    if weights < TINY:
        return f"tiny: {weights:,} weights, fewer than {TINY:,}"
    inputs, outputs = getattr(module, "in_channels", None), getattr(module, "out_channels", None)
    if inputs is None or outputs is None:
        return True
    if min(inputs, outputs) < IMAGE:
        return f"a convolution {'from' if inputs < IMAGE else 'to'} {min(inputs, outputs)} channels, as an image has"
    if getattr(module, "groups", 1) == inputs:
        return "a depthwise convolution"
    return True


def as_where(where: Layers | None) -> Where | None:
    """A condition: patterns, a text or a list of them, as `only` takes them; a function as it is.

    Raises:
        TypeError: it is neither.
        ValueError: there is no pattern.
    """
    if where is None or callable(where):
        return where
    if isinstance(where, Iterable) and not isinstance(where, Mapping):
        return only(where)
    raise TypeError(
        f"where must be a name or pattern as 'head' or 'encoder.*', a list of them, or a function of name and module "
        f"as nplex.only gives, got {where!r}"
    )


def with_everything(where: Where | None) -> Where | None:
    """The condition for a conversion of everything: what `all_but` leaves is what it names, no more."""
    return replace(where, everything=True) if isinstance(where, _AllBut) else where


def only_leaves(where: Where | None) -> bool:
    """Whether a condition says no more than what it leaves, so that heads and embeddings are left too."""
    if isinstance(where, _AllOf):
        return all(map(only_leaves, where.conditions))
    return where is None or where is sensible or isinstance(where, _AllBut)


def unfitting(where: Where | None, names: Iterable[str]) -> tuple[str, ...]:
    """Patterns that no name fits: written wrongly."""
    names = list(names)
    if isinstance(where, _AllOf):
        return tuple(pattern for part in where.conditions for pattern in unfitting(part, names))
    patterns = where.patterns if isinstance(where, _Only | _AllBut) else ()
    return tuple(pattern for pattern in patterns if not any(fits(name, pattern) for name in names))


def unselected(where: Where | None, names: list[str], module: nn.Module) -> str:
    """The reason why `where` skips a module, or nothing; a module with several names is taken if all are."""
    if where is None:
        return ""
    for name in names:
        answer = where(name, module)
        if isinstance(answer, bytes | list | tuple | dict | set):
            raise TypeError(f"where must answer True, False or a reason as text, got {answer!r} for {name}")
        if isinstance(answer, str) and answer:
            return answer
        if not answer:
            return NOT_SELECTED + " under all its names" * (len(names) > 1)
    return ""


def is_yes(answer: bool | str) -> bool:
    """A text is a reason to skip, not a yes."""
    return bool(answer) and not isinstance(answer, str)


def fits(name: str, pattern: str) -> bool:
    """Whether a layer's name fits a pattern, see `only`."""
    if is_wild(pattern):
        return fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.endswith(f".{pattern}") or name.startswith(f"{pattern}.")


def is_wild(pattern: str) -> bool:
    """Whether it is a pattern, and not simply a name."""
    return bool(set("*?[").intersection(pattern))


def _fits_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fits(name, pattern) for pattern in patterns)


def _patterns(name: str, given: tuple[str | Iterable[str], ...]) -> tuple[str, ...]:
    """All patterns, those of lists too; refuses what is not a text, and an empty call, which would mean nothing."""
    lists = [(entry,) if isinstance(entry, str) or not isinstance(entry, Iterable) else entry for entry in given]
    patterns = tuple(pattern for entries in lists for pattern in entries)
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise TypeError(f'{name} needs patterns of names, as in {name}("encoder.*"), got {wrong[0]!r:.80}')
    if not patterns or not all(patterns):
        raise ValueError(f'{name} needs at least one pattern, as in {name}("encoder.*"), got none')
    return patterns
