"""Which rule to take: n and rank are searched for, and the result is the Pareto front of size, quality and speed."""

from nplex.lab.scored import Measured
from nplex.lab.tuning.pareto import Goals, Pareto, Row
from nplex.lab.tuning.search import tune
from nplex.lab.tuning.space import RANKS, rules_to_try

__all__ = ["tune", "RANKS", "rules_to_try", "Goals", "Measured", "Pareto", "Row"]
