"""One HTML page about a run or a comparison: scores, learning curves, and the rules over training."""

from nplex.report.page import report

__all__ = ["report"]
