"""One HTML page about a run or a comparison: scores, learning curves, and the rules over training."""

from nplex.lab.reporting.page import report

__all__ = ["report"]
