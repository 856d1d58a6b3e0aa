"""Which known algebra a table is, up to changes of basis; chance decides whether that says anything."""

from nplex.algebra.identification.invariants import Invariants
from nplex.algebra.identification.naming import Distance, Identification, identify

__all__ = ["identify", "Identification", "Distance", "Invariants"]
