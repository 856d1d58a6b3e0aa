"""Is one model better than another on other text of the same kind? The paired bootstrap."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.lab.scores.bleu_score import counts, of_counts

STEP = 100  # resamples at a time


@dataclass(frozen=True)
class Difference:
    """A score minus another's.

    Attributes:
        mean: of the scores as they are, over seeds.
        low: lower end of the 95 % interval over resampled examples.
        high: upper end.
        p: how often a resample falls on the other side of 0, times two: small where the difference is not chance.
    """

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def paired(
    statistics: Float[Tensor, "seeds examples sums"], base: Float[Tensor, "base_seeds base_examples base_sums"],
    score: Callable[[Float[Tensor, "sums"]], float], *, resamples: int = 1000, seed: int = 0,
) -> Difference:  # fmt: skip
    """The mean score over seeds minus the base's, on the same examples; these are drawn anew, with replacement.

    Only the choice of examples varies; the spread between seeds is a thing of its own and not in it.

    Args:
        statistics: what a score needs of each example, such that it adds up: right or not; n-gram counts.
        base: of the model to compare with.
        score: of the sums over examples.
        resamples: how many.
        seed: of the draws.

    Raises:
        ValueError: the examples are not as many.

    Source: Koehn, Statistical significance tests for machine translation evaluation (2004).
    """
    if statistics.shape[1:] != base.shape[1:] or not statistics.shape[1]:
        raise ValueError(f"expected the same examples, got {list(statistics.shape[1:])} and {list(base.shape[1:])}")
    every = torch.ones(1, statistics.shape[1], dtype=torch.float64)
    mean = _differences(every, statistics, base, score)[0]
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    while len(found) < resamples:
        times = _times(min(STEP, resamples - len(found)), statistics.shape[1], generator)
        found += _differences(times, statistics, base, score)
    sorted_ = torch.tensor(found, dtype=torch.float64)
    low, high = sorted_.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    other_side = min(sum(value <= 0 for value in found), sum(value >= 0 for value in found))
    return Difference(mean, low, high, min(1.0, 2 * (other_side + 1) / (resamples + 1)))


def _times(count: int, examples: int, generator: torch.Generator) -> Float[Tensor, "count examples"]:
    """How often each example is drawn, in some resamples."""
    drawn = torch.randint(examples, (count, examples), generator=generator)
    ones = torch.ones(drawn.shape, dtype=torch.float64)
    return torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, ones)


def _differences(
    times: Float[Tensor, "count examples"], statistics: Tensor, base: Tensor,
    score: Callable[[Float[Tensor, "sums"]], float],
) -> list[float]:  # fmt: skip
    ours, theirs = (
        [sum(map(score, sums)) / len(sums) for sums in torch.einsum("rn,snk->rsk", times, each.double())]
        for each in (statistics, base)
    )
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def statistics(
    kind: str, answers: Sequence[Sequence[str]], references: Sequence[str]
) -> Float[Tensor, "seeds examples sums"]:
    """Of each seed's answers: right and 1; a loss and 1; the counts of BLEU.

    Args:
        kind: accuracy, loss or bleu.
        answers: as a result has them: one text of 0 and 1; a loss of each piece; the texts.
        references: what texts are compared with; not looked at for the others.
    """
    if kind == "bleu":
        return torch.tensor([counts(texts, references) for texts in answers], dtype=torch.float64)
    values = [list(texts[0]) if kind == "accuracy" else list(texts) for texts in answers]
    numbers = torch.tensor([[float(value) for value in row] for row in values], dtype=torch.float64)
    return torch.stack([numbers, torch.ones_like(numbers)], -1)


def score_of(kind: str) -> Callable[[Float[Tensor, "sums"]], float]:
    """The score of summed statistics: accuracy and BLEU from 0 to 100, loss in nats."""
    if kind == "bleu":
        return of_counts
    factor = 100.0 if kind == "accuracy" else 1.0
    return lambda sums: factor * float(sums[0] / sums[1])
