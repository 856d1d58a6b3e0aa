"""What the tests run over, as data: a new algebra, method or rule enters every test by entering its table."""

import warnings

from nplex import algebra, ops
from nplex.nn import FixedRule, LearnedRule

ALGEBRAS = [
    *algebra.known.NAMED.values(), algebra.clifford(2), algebra.clifford(0, 2), algebra.clifford(3, 0),
    algebra.clifford(1, 1, 1), algebra.cyclic(3), algebra.cyclic(5), algebra.matrices(2), algebra.direct(3),
]  # fmt: skip


def narrow(n, rank, **kw):
    """A rule of a rank below n, which warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", f"rank = {rank} is below n = {n}")
        return LearnedRule(n, rank, **kw)


RULES = {
    "learned 1": lambda **kw: LearnedRule(1, **kw),
    "learned 2": lambda **kw: LearnedRule(2, **kw),
    "learned 3": lambda **kw: LearnedRule(3, **kw),
    "learned 5": lambda **kw: LearnedRule(5, **kw),
    "learned 8": lambda **kw: LearnedRule(8, **kw),
    "learned 2:2": lambda **kw: LearnedRule(2, 2, **kw),
    "learned 3:2": lambda **kw: narrow(3, 2, **kw),
    "learned 4:4": lambda **kw: LearnedRule(4, 4, **kw),
    "learned 4:7": lambda **kw: LearnedRule(4, 7, **kw),
    "learned 8:24": lambda **kw: LearnedRule(8, 24, **kw),
    "quaternion": lambda **kw: FixedRule(algebra.quaternion, **kw),
    "complex": lambda **kw: FixedRule(algebra.complex_, **kw),
    "octonion": lambda **kw: FixedRule(algebra.octonion, **kw),
    "cyclic(5)": lambda **kw: FixedRule(algebra.cyclic(5), **kw),
    "from quaternion": lambda **kw: LearnedRule(4, start=algebra.quaternion, **kw),
    "from quaternion:8": lambda **kw: LearnedRule(4, 8, start=algebra.quaternion, **kw),
}

METHODS = list(ops.METHODS)
SIZES = [(8, 8), (9, 17), (16, 10), (23, 8)]


def methods_for(rule):
    """The methods that a rule allows."""
    return [method for method in METHODS if not ops.METHODS[method].needs_factors or rule.rank is not None]
