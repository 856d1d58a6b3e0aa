"""The search for a bilinear algorithm of a table: find, the ranks it tries, what is proved impossible."""

from nplex.algebra.search.bound import LowerBound, lower_bound
from nplex.algebra.search.finding import Search, find

__all__ = ["find", "Search", "lower_bound", "LowerBound"]
