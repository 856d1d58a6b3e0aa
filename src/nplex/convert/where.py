"""Which layers: functions of name and module that answer True, False, or the reason to skip a layer."""

import fnmatch
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

Where = Callable[[str, nn.Module], bool | str]
NOT_SELECTED = "not selected by where"
EMBEDDINGS = "embeddings change only where `where` asks for them"
HEADS = re.compile(r"(.*_)?head|classifier|score|scores|qa_outputs|cls|embed_out|(to_)?logits")
OUTERMOST_HEADS = {"fc", "proj_out", "conv_out", "output", "generator"}  # inside a model they mean other things
ROUTERS = {"router", "gate", "gating", "wg"}
TINY = 2**12
IMAGE = 8


def only(*patterns: str | Iterable[str]) -> Where:
    """Takes layers whose full name matches one of the patterns: `only("encoder.*", "*.linear1")`, or of a list.

    `*` stands for any characters, dots too, as in the shell's patterns (fnmatch, case counts). Embeddings that match
    are taken too.
    """
    return _Only(_patterns("only", patterns))


@dataclass(frozen=True)
class _Only:
    """What `only` gives; prints as the code that makes it."""

    patterns: tuple[str, ...]

    def __call__(self, name: str, module: nn.Module) -> bool:
        return _matches(name, self.patterns)

    def __repr__(self) -> str:
        return f"nplex.only({', '.join(map(json.dumps, self.patterns))})"


def all_but(*patterns: str | Iterable[str]) -> Where:
    """Takes layers whose full name matches none of the patterns: `all_but("lm_head", "*.classifier")`, or of a list.

    It takes no embeddings: these must be asked for, by `only` or a function.
    """
    found = _patterns("all_but", patterns)
    return lambda name, module: not _matches(name, found) and (not is_embedding(module) or EMBEDDINGS)


def all_of(*conditions: Where) -> Where:
    """Takes layers that all conditions take: `all_of(only("encoder.*"), sensible)`; the first refusal counts."""
    if not conditions or not all(map(callable, conditions)):
        raise TypeError(f'all_of needs conditions, as in all_of(only("encoder.*"), sensible), got {conditions!r}')

    def where(name: str, module: nn.Module) -> bool | str:
        answers = (condition(name, module) for condition in conditions)
        return next((answer for answer in answers if not is_yes(answer)), True)

    return where


def sensible(name: str, module: nn.Module) -> bool | str:
    """Takes layers that are worth converting; the preview has the reason for each that is not.

    Skipped are embeddings; output heads (by their names: `lm_head`, `classifier`, `score`, `qa_outputs`, `cls`,
    `head`, `*_head`, `logits`, outermost `fc`, `proj_out`, `conv_out`); routers of mixtures of experts (`router`,
    `gate` with at most a quarter as many outputs as inputs); layers with fewer than 4096 weights; convolutions
    from or to fewer than 8 channels, as an image has; depthwise convolutions. A name tells little: look at the
    preview, and say otherwise with a `where` of your own, or narrow it by `all_of(sensible, only("encoder.*"))`.

    Examples:
        >>> sensible("lm_head", nn.Linear(512, 32000)), sensible("layers.0.up", nn.Linear(512, 2048))
        ('an output head by its name (lm_head)', True)
    """
    if is_embedding(module):
        return EMBEDDINGS
    if reason := output_head(name):
        return reason
    if ROUTERS.intersection(name.split(".")) and 4 * getattr(module, "out_features", 4) <= getattr(
        module, "in_features", 0
    ):
        return "a router by its name and its few outputs"
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


def output_head(name: str) -> str:
    """Why a layer of this name is taken for an output head, or nothing."""
    found = name if name in OUTERMOST_HEADS else next(filter(HEADS.fullmatch, name.split(".")), None)
    return "" if found is None else f"an output head by its name ({found})"


def unselected(where: Where | None, names: list[str], module: nn.Module) -> str:
    """The reason why `where` skips a module, or nothing; a module with several names is taken if all are."""
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
    """A text is a reason to skip, not a yes."""
    return bool(answer) and not isinstance(answer, str)


def is_embedding(module: nn.Module) -> bool:
    """Whether it is one of torch's embeddings."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(name: str, given: tuple[str | Iterable[str], ...]) -> tuple[str, ...]:
    """All patterns, those of lists too; refuses what is not a text, and an empty call, which would mean nothing."""
    lists = [(entry,) if isinstance(entry, str) or not isinstance(entry, Iterable) else entry for entry in given]
    patterns = tuple(pattern for entries in lists for pattern in entries)
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise TypeError(f'{name} needs patterns of names, as in {name}("encoder.*"), got {wrong[0]!r:.80}')
    if not patterns or not all(patterns):
        raise ValueError(f'{name} needs at least one pattern, as in {name}("encoder.*"), got none')
    return patterns
