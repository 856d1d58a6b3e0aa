"""Batches of like length."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nplex.lab.text.vocabulary import PAD


def pad(lines: Sequence[Int[Tensor, "_"]]) -> Int[Tensor, "batch longest"]:
    """Lines of different lengths as one tensor, filled up with PAD on the right."""
    return pad_sequence(list(lines), batch_first=True, padding_value=PAD)


def pad_sides(
    sides: Sequence[Sequence[Tensor]], indices: Sequence[int], device: torch.device
) -> tuple[Int[Tensor, "batch _"], ...]:
    """Some examples as a padded tensor for each side, as a source and its target."""
    return tuple(pad([side[i] for i in indices]).to(device) for side in sides)


def longest(sides: Sequence[Sequence[Tensor]]) -> list[int]:
    """The length of each example's longer side, to which a batch is padded."""
    return [max(map(len, example)) for example in zip(*sides, strict=True)]


def batches(lengths: Sequence[int], size: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Indices in batches of like length: little is padded.

    With a generator the order is random: shuffled, sorted by length within stretches of 50 batches, and the
    batches shuffled. Without, by length alone.

    Raises:
        ValueError: the size is not positive.
    """
    if size < 1:
        raise ValueError(f"a batch needs a size of 1 or more, got {size}")

    def cut(part: list[int]) -> list[list[int]]:
        return [part[first : first + size] for first in range(0, len(part), size)]

    return _grouped(lengths, 50 * size, cut, generator)


def token_batches(lengths: Sequence[int], tokens: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Indices in batches of like length, whose padded size, count times longest, is `tokens` at most.

    Shuffled as `batches` are. A line that is longer than `tokens` makes a batch of its own.

    Raises:
        ValueError: tokens is not positive.
    """
    if tokens < 1:
        raise ValueError(f"a batch needs 1 token or more, got {tokens}")

    def cut(part: list[int]) -> list[list[int]]:
        found: list[list[int]] = []
        for index in part:  # in the order of lengths: the newest is the longest
            if found and (len(found[-1]) + 1) * lengths[index] <= tokens:
                found[-1].append(index)
            else:
                found.append([index])
        return found

    mean = max(1.0, sum(lengths) / max(1, len(lengths)))
    return _grouped(lengths, 50 * max(1, int(tokens / mean)), cut, generator)


def _grouped(
    lengths: Sequence[int], stretch: int, cut: Callable[[list[int]], list[list[int]]],
    generator: torch.Generator | None,
) -> list[list[int]]:  # fmt: skip
    """Shuffles, sorts by length within stretches, cuts each, and shuffles the batches; else by length alone."""
    order = list(range(len(lengths))) if generator is None else _shuffled(len(lengths), generator)
    stretch = len(order) if generator is None else stretch
    grouped: list[list[int]] = []
    for start in range(0, len(order), max(stretch, 1)):
        grouped += cut(sorted(order[start : start + stretch], key=lambda index: lengths[index]))
    return grouped if generator is None else [grouped[index] for index in _shuffled(len(grouped), generator)]


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()
