"""Scores with their intervals: accuracy, BLEU, and what of a difference is chance."""
