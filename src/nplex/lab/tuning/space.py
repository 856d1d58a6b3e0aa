"""What is tried: learned rules by n and rank, and algebras by name."""

from collections.abc import Sequence

from nplex.algebra import generic_rank
from nplex.convert import parse_rule
from nplex.lab.scored import DENSE, nominal_parameters
from nplex.nn import LearnedRule

RANKS = ("full", "generic", "between", "n")
LARGEST = 256


def rules_to_try(
    n: Sequence[int] = range(2, 9), ranks: Sequence[str] = RANKS, algebras: Sequence[str] = ()
) -> tuple[str, ...]:
    """Every rule of these sizes and ranks, each once: dense, then from the largest to the smallest.

    Args:
        n: sizes of learned rules; 1 stands for dense.
        ranks: of each: `full`, `generic` (nplex.algebra.generic_rank), `n`, and `between` the last two.
        algebras: names of fixed rules, as quaternion.

    Raises:
        ValueError: a size, a rank or a name is unknown, or only dense is left.

    Examples:
        >>> rules_to_try(n=[8])
        ('dense', '8:24', '8', '8:16', '8:8')
    """
    if wrong := [size for size in n if not 1 <= size <= LARGEST]:
        raise ValueError(f"n must be numbers from 1 to {LARGEST}, got {wrong[0]}")
    if unknown := [rank for rank in ranks or ["none"] if rank not in RANKS]:
        raise ValueError(f"ranks must be some of {', '.join(RANKS)}; got {unknown[0]!r}")
    for name in algebras:
        if name == DENSE or isinstance(parse_rule(name), LearnedRule):
            raise ValueError(f"algebras must be names as quaternion, got {name!r}")
    found = set(algebras)
    for size in {*n} - {1}:
        generic = generic_rank(size)
        texts = {"full": "", "generic": f":{generic}", "between": f":{(size + generic + 1) // 2}", "n": f":{size}"}
        found |= {f"{size}{texts[rank]}" for rank in ranks}
    if not found:
        raise ValueError("there is nothing to compare with dense: give n above 1, or algebras")
    return DENSE, *sorted(found, key=lambda rule: (-nominal_parameters(rule), rule))
