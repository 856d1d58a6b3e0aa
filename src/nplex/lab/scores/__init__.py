"""Scores with their intervals: accuracy, BLEU, and what of a difference is chance."""

from nplex.lab.scores.bleu_score import Bleu, bleu
from nplex.lab.scores.bootstrap import Difference, paired, score_of, statistics
from nplex.lab.scores.intervals import normal, wilson

__all__ = ["wilson", "normal", "Bleu", "bleu", "Difference", "paired", "statistics", "score_of"]
