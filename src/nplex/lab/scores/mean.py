"""Means of numbers, as losses: their interval."""

import math
import statistics
from collections.abc import Sequence


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The normal 95 % interval of a mean, `mean +- 1.96 s / sqrt(N)`; of one value, that value twice.

    Args:
        values: one for each example, such as the mean loss of each piece of a text.
    """
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half
