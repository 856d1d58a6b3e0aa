"""Are algorithms that were found made exact in small numbers, and is it said where there are none?"""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from nplex.algebra import (
    BilinearAlgorithm,
    ExactAlgorithm,
    additions,
    complex_,
    find,
    formulas,
    known_algorithm,
    matrices,
    named,
    quaternion,
    round_off,
)
from nplex.algebra.rounding import SMALL_NUMBERS


@pytest.mark.parametrize(
    ("name", "rank", "noise"),
    [("complex", 3, 0.0), ("quaternion", 8, 0.0), ("quaternion", 8, 0.01), ("matrices(2)", 7, 0.01)],
)
def test_algorithms_that_were_found_become_exact(name, rank, noise):
    algebra = named(name)
    algorithm, generator = find(algebra.table, rank, seed=1).algorithm, torch.Generator().manual_seed(0)
    near = BilinearAlgorithm(
        *(factor + noise * torch.randn(factor.shape, generator=generator) for factor in algorithm)
    )
    exact = round_off(near, algebra.table)
    assert exact is not None
    assert exact.rank == rank
    assert {abs(c) for columns in (exact.encode_component, exact.decode) for c in sum(columns, ())} <= set(
        SMALL_NUMBERS
    )
    assert exact.wrong_entries(algebra.entries) == 0
    assert exact.factors().error(algebra.table) == 0
    assert len(formulas(exact).splitlines()) == rank + algebra.n
    assert additions(exact) >= rank - algebra.n


def test_a_seed_gives_one_result_and_the_global_random_state_is_untouched():
    algorithm, before = find(matrices(2).table, 7).algorithm, torch.get_rng_state()
    assert round_off(algorithm, matrices(2).table, seed=3) == round_off(algorithm, matrices(2).table, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def test_rounding_knows_when_there_is_nothing():
    table = torch.randn(2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert round_off(find(table).algorithm, table, tries=3) is None
    assert round_off(find(quaternion.table, 8).algorithm, matrices(2).table) is None
    thirds = named("cyclic(3)").table  # its algorithms of 4 products need thirds
    assert round_off(find(thirds, 4).algorithm, thirds, tries=3) is None
    many = torch.zeros(16, 100, dtype=torch.float64)
    assert round_off(BilinearAlgorithm(many, many, many), torch.zeros(16, 16, 16)) is None
    with pytest.raises(ValueError, match="n = 2, the table n = 4"):
        round_off(known_algorithm(complex_), quaternion.table)


def test_an_algorithm_is_checked_entry_by_entry():
    exact = ExactAlgorithm.from_factors(known_algorithm(quaternion))
    assert exact.wrong_entries(quaternion.entries) == 0
    assert exact.in_whole_numbers().wrong_entries(quaternion.entries) == 0
    changed = (exact.decode[0][0] + Fraction(1, 10**30), *exact.decode[0][1:])
    assert replace(exact, decode=(changed, *exact.decode[1:])).wrong_entries(quaternion.entries) > 0
    with pytest.raises(ValueError, match="n = 4 for this algorithm, got one of n = 2"):
        exact.wrong_entries(complex_.entries)
