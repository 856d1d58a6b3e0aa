"""BLEU, by sacreBLEU alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Bleu:
    """A corpus score.

    Attributes:
        score: from 0 to 100.
        low: lower end of the bootstrap's 95 % interval.
        high: upper end.
        signature: sacreBLEU's: what exactly was computed.
    """

    score: float
    low: float
    high: float
    signature: str


def bleu(
    hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False, resamples: int = 1000
) -> Bleu:
    """Corpus BLEU of translations, one reference each, with a bootstrap over sentences.

    Args:
        hypotheses: plain text, not tokenized.
        references: as many.
        lowercase: compare without regard to case.
        resamples: of the bootstrap; 0 for none, then both ends are the score.

    Raises:
        ImportError: sacrebleu is not installed; names the command.
        ValueError: there are not as many of both, or none.

    Source: Post, A call for clarity in reporting BLEU scores (2018); Koehn (2004) for the bootstrap.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(f"expected a translation for each reference, got {len(hypotheses)} for {len(references)}")
    metric = metric_of(lowercase=lowercase)
    found = metric.corpus_score(list(hypotheses), [list(references)], n_bootstrap=max(1, resamples))
    half = found._ci if resamples else 0.0
    middle = found._mean if resamples else found.score
    low, high = max(0.0, middle - half), min(100.0, middle + half)
    return Bleu(found.score, low, high, str(metric.get_signature()))


def metric_of(*, lowercase: bool = False, effective_order: bool = False) -> Any:
    """sacreBLEU's metric; its absence is one error that names the command."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise ImportError("BLEU needs sacrebleu, which is not installed: pip install 'nplex[lab]'") from None
    return BLEU(lowercase=lowercase, effective_order=effective_order)


def counts(hypotheses: Sequence[str], references: Sequence[str], *, lowercase: bool = False) -> list[list[int]]:
    """What BLEU needs of each sentence, which adds up: n-grams that are right, n-grams, and both lengths."""
    metric = metric_of(lowercase=lowercase, effective_order=True)  # else sacreBLEU warns; counts do not depend on it
    found = [metric.sentence_score(text, [right]) for text, right in zip(hypotheses, references, strict=True)]
    return [[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in found]


def of_counts(sums: Float[Tensor, "10"]) -> float:
    """Corpus BLEU from the sums of `counts` over sentences, from 0 to 100."""
    whole = [round(value) for value in sums.tolist()]
    compute = type(metric_of()).compute_bleu
    return compute(whole[:4], whole[4:8], whole[8], whole[9], smooth_method="exp").score
