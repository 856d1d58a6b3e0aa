"""Batches of like length."""

from collections.abc import Sequence

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
    return tuple(moved(pad([side[i] for i in indices]), device) for side in sides)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU from pinned memory, so that nothing waits for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def longest(sides: Sequence[Sequence[Tensor]]) -> list[int]:
    """The length of each example's longer side, to which a batch is padded."""
    return [max(map(len, example)) for example in zip(*sides, strict=True)]


def batches(
    lengths: Sequence[int], most: int, generator: torch.Generator | None = None, *, padded: bool = False
) -> list[list[int]]:
    """Indices in batches of like length: little is padded.

    With a generator the order is random: shuffled, sorted by length within stretches of 50 batches, and the
    batches shuffled. Without, by length alone.

    Args:
        lengths: of all lines.
        most: lines of a batch; or its padded size.
        generator: of the order.
        padded: `most` is count times longest. A line that is longer makes a batch of its own.

    Raises:
        ValueError: a batch would hold nothing.
    """
    if most < 1:
        raise ValueError(f"a batch needs a size of 1 or more, got {most}")
    order = list(range(len(lengths))) if generator is None else _shuffled(len(lengths), generator)
    mean = max(1.0, sum(lengths) / max(1, len(lengths))) if padded else 1
    stretch = max(1, len(order)) if generator is None else 50 * max(1, int(most / mean))
    found: list[list[int]] = []
    for start in range(0, len(order), stretch):
        batch: list[int] = []
        for index in sorted(order[start : start + stretch], key=lambda index: lengths[index]):
            if not batch or (len(batch) + 1) * (lengths[index] if padded else 1) > most:
                found.append(batch := [])
            batch.append(index)  # in the order of lengths: the newest is the longest
    return found if generator is None else [found[index] for index in _shuffled(len(found), generator)]


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()
