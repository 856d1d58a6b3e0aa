"""Which rule to take: n and rank are searched for, and the result is the front of size, quality and speed."""

from nplex.tune.front import Front, Row
from nplex.tune.measured import Budget, Goals, Measured, Progress, Pruned
from nplex.tune.search import tune
from nplex.tune.space import Candidate, Space

__all__ = ["tune", "Space", "Budget", "Goals", "Measured", "Front", "Row", "Candidate", "Progress", "Pruned"]
