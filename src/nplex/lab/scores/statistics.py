"""What answers add up to, for the paired bootstrap."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.lab.scores.bleu import counts, of_counts


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
