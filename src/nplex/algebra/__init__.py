"""Mathematics on n x n x n tables; knows no layer."""

from nplex.algebra.bilinear import BilinearAlgorithm, as_table, generic_rank
from nplex.algebra.exact import known_algorithm
from nplex.algebra.fractions import ExactAlgorithm, additions, formulas
from nplex.algebra.identification import Identification, identify
from nplex.algebra.known import (
    clifford,
    complex_,
    cyclic,
    direct,
    dual,
    matrices,
    named,
    octonion,
    quaternion,
    real,
    sedenion,
    split_complex,
    split_quaternion,
)
from nplex.algebra.rounding import round_off
from nplex.algebra.search import LowerBound, Search, find, lower_bound
from nplex.algebra.table import Algebra

__all__ = [
    "Algebra", "named", "real", "complex_", "split_complex", "dual", "quaternion", "split_quaternion", "octonion",
    "sedenion", "clifford", "cyclic", "matrices", "direct", "BilinearAlgorithm", "as_table", "generic_rank",
    "known_algorithm", "find", "Search", "lower_bound", "LowerBound", "round_off", "ExactAlgorithm", "formulas",
    "additions", "identify", "Identification",
]  # fmt: skip
