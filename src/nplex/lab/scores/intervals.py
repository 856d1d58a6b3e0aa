"""Intervals of means: of accuracies, and of other numbers as losses."""

import math
import statistics
from collections.abc import Sequence


def wilson(correct: Sequence[str]) -> tuple[float, float]:
    """Wilson's 95 % interval of the mean accuracy, with `N p (1 - p) / s^2` for the number of examples.

    p is the mean and s the standard deviation over examples, each counted with its mean over the seeds: with one
    seed this is N; with more, examples that all seeds get right or wrong together are not taken for independent.
    The spread between seeds is a thing of its own and not in it.

    Args:
        correct: for each seed a text of 0 and 1, one for each example.

    Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
    """
    per_example = [sum(map(int, values)) / len(values) for values in zip(*correct, strict=True)]
    examples = len(per_example)
    p = sum(per_example) / examples
    variance = sum((value - p) ** 2 for value in per_example) / examples
    count = examples * (p * (1 - p) / variance if variance else 1.0)
    z = 1.96
    centre = (p + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(p * (1 - p) / count + (z / (2 * count)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def normal(values: Sequence[float]) -> tuple[float, float]:
    """The normal 95 % interval of a mean, `mean +- 1.96 s / sqrt(N)`; of one value, that value twice.

    Args:
        values: one for each example, such as the mean loss of each piece of a text.
    """
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half
