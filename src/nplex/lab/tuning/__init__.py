"""Which rule to take: n and rank are searched for, and the result is the front of size, quality and speed."""

from nplex.lab.tuning.front import Front, Row
from nplex.lab.tuning.measured import Budget, Goals, Measured, Progress, Pruned
from nplex.lab.tuning.search import tune
from nplex.lab.tuning.space import Candidate, Space

__all__ = ["tune", "Space", "Budget", "Goals", "Measured", "Front", "Row", "Candidate", "Progress", "Pruned"]
