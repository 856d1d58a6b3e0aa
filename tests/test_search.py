"""Does the search find the known ranks, tell the impossible from the not found, and say so?"""

import dataclasses
import re

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import generic_rank
from nplex.algebra.search import GOOD_GROWTH, find


def from_products(n: int, products: dict[tuple[int, int], tuple[int, float]]) -> Float[Tensor, "n n n"]:
    """The table with `e_k e_j = sign e_i` for every entry `(k, j): (i, sign)`."""
    table = torch.zeros(n, n, n, dtype=torch.float64)
    for (k, j), (i, sign) in products.items():
        table[k, i, j] = sign
    return table


def cayley_dickson(doublings: int) -> Float[Tensor, "n n n"]:
    """Reals, complex numbers, quaternions, octonions: `(a, b)(c, d) = (ac - d* b, da + b c*)`."""
    table = torch.ones(1, 1, 1, dtype=torch.float64)
    for _ in range(doublings):
        n = len(table)
        flip = torch.tensor([1.0] + [-1.0] * (n - 1), dtype=torch.float64)
        swapped = table.transpose(0, 2)
        double = table.new_zeros(2 * n, 2 * n, 2 * n)
        double[:n, :n, :n] = table
        double[n:, :n, n:] = -swapped * flip
        double[:n, n:, n:] = swapped
        double[n:, n:, :n] = table * flip
        table = double
    return table


def matrices(m: int) -> Float[Tensor, "n n n"]:
    units = [(a, b, c) for a in range(m) for b in range(m) for c in range(m)]
    return from_products(m * m, {(a * m + b, b * m + c): (a * m + c, 1.0) for a, b, c in units})


def cyclic(n: int) -> Float[Tensor, "n n n"]:
    return from_products(n, {(k, j): ((k + j) % n, 1.0) for k in range(n) for j in range(n)})


def truncated(n: int) -> Float[Tensor, "n n n"]:
    """Polynomials modulo x^n; n = 2 are the dual numbers."""
    return from_products(n, {(k, j): (k + j, 1.0) for k in range(n) for j in range(n - k)})


def direct(n: int) -> Float[Tensor, "n n n"]:
    return from_products(n, {(k, k): (k, 1.0) for k in range(n)})


def random_table(n: int, seed: int) -> Float[Tensor, "n n n"]:
    return torch.randn(n, n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KNOWN = {
    "real": (cayley_dickson(0), 1),
    "complex": (cayley_dickson(1), 3),
    "dual": (truncated(2), 3),
    "quaternion": (cayley_dickson(2), 8),
    "matrices(2)": (matrices(2), 7),
    "direct(2)": (direct(2), 2),
    "direct(5)": (direct(5), 5),
    "cyclic(5)": (cyclic(5), 7),
    "truncated(4)": (truncated(4), 7),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_smallest_rank_of_known_algebras(name):
    table, rank = KNOWN[name]
    search = find(table)
    assert (search.verdict, search.rank, search.algorithm.rank) == ("exact", rank, rank)
    assert search.error <= 1e-12
    assert search.growth <= GOOD_GROWTH


@pytest.mark.parametrize("name", KNOWN)
def test_known_algebras_at_their_rank(name):
    table, rank = KNOWN[name]
    search = find(table, rank)
    assert search.verdict == "exact"
    torch.testing.assert_close(search.algorithm.table(), table, rtol=0, atol=1e-11)


def test_octonions_need_no_more_than_26():
    search = find(cayley_dickson(3), 26)
    assert search.verdict == "exact"
    assert search.growth <= GOOD_GROWTH


@pytest.mark.parametrize(
    ("table", "rank", "says"),
    [
        (direct(5), 4, "proved: .* linearly independent"),
        (cayley_dickson(1), 2, "proved: .* not real"),
        (cayley_dickson(2), 5, "proved: .* do not commute"),
        (cayley_dickson(2), 7, "numerical evidence, no proof: .* stall"),
        (matrices(2), 6, "numerical evidence, no proof: .* stall"),
        (cyclic(5), 6, "numerical evidence, no proof: .* stall"),
        (truncated(2), 2, "numerical evidence, no proof: .* factors grow"),
    ],
)
def test_impossible_ranks(table, rank, says):
    search = find(table, rank)
    assert search.verdict == "impossible"
    assert search.error > 1e-6
    assert search.rank == rank
    assert re.search(says, search.reason)


def test_one_short_start_is_no_evidence():
    search = find(cayley_dickson(2), 7, starts=1, steps=4)
    assert search.verdict == "not found"
    assert "another seed" in search.reason


def test_quaternions_with_seven_products_stall_at_a_third():
    search = find(cayley_dickson(2), 7)
    assert 0.3 < search.error < 0.4
    assert len(search.attempts) == 8


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 8])
def test_random_tables(n):
    for seed in range(4 if n < 6 else 1):
        search = find(random_table(n, seed))
        assert search.verdict == "exact"
        assert generic_rank(n) <= search.rank <= generic_rank(n) + 1
        assert search.error <= 1e-12
        assert search.growth <= GOOD_GROWTH


@pytest.mark.slow
@pytest.mark.parametrize("n", range(2, 9))
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_random_tables(n, seed):
    search = find(random_table(n, seed))
    assert search.verdict == "exact"
    assert search.rank <= generic_rank(n) + 1
    assert search.error <= 1e-12
    assert search.growth <= GOOD_GROWTH


def test_a_random_table_below_its_rank_is_not_exact():
    search = find(random_table(4, 0), 6, starts=3)
    assert search.verdict != "exact"
    assert search.error > 1e-3


def test_the_scale_of_the_table_does_not_matter():
    table = random_table(3, 0)
    for scale in (1e-30, 1e30):
        assert find(table * scale, 5).error <= 1e-12


def test_columns_of_a_term_have_equal_norms():
    algorithm = find(random_table(4, 1)).algorithm
    norms = torch.stack([factor.norm(dim=0) for factor in algorithm])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))


def test_numbers_are_those_of_the_algorithm():
    table = random_table(3, 2)
    search = find(table)
    assert search.error == search.algorithm.error(table)
    assert search.growth == search.algorithm.growth
    assert search.algorithm.encode_component.dtype == torch.float64


def test_float32_that_requires_gradients_is_left_alone():
    table = random_table(4, 3).float().requires_grad_()
    search = find(table)
    assert search.error <= 1e-12
    assert not search.algorithm.decode.requires_grad
    assert table.requires_grad
    assert table.grad is None


def test_a_rounded_table_has_its_rank_up_to_rounding():
    change = random_table(4, 4)[:3]
    rounded = torch.einsum("kij,ka,ib,jc->abc", direct(4), *change).float()
    assert find(rounded).rank >= generic_rank(4)
    assert find(rounded, tolerance=1e-6).rank == 4


def test_whole_numbers_are_a_table_too():
    assert find(direct(2).long()).rank == 2


def test_a_seed_gives_one_result():
    table = cayley_dickson(2)
    first, again, other = find(table, seed=3), find(table, seed=3), find(table, seed=4)
    assert first.attempts == again.attempts
    assert all(torch.equal(a, b) for a, b in zip(first.algorithm, again.algorithm, strict=True))
    assert not torch.equal(first.algorithm.decode, other.algorithm.decode)


def test_the_global_random_state_is_untouched():
    before = torch.get_rng_state()
    find(random_table(3, 0))
    assert torch.equal(before, torch.get_rng_state())


def test_it_prints_what_was_looked_for_and_found():
    lines = str(find(cayley_dickson(2), 8)).splitlines()
    assert lines[0].startswith("looked for: 8 products, n = 4; ")
    assert lines[1].startswith("best: 8 products, relative error ")
    assert lines[2].startswith("exact: 8 products do")


def test_a_search_is_frozen():
    search = find(direct(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        search.rank = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (torch.ones(2, 2), r"cube n x n x n, got shape \(2, 2\); pad"),
        (torch.ones(2, 3, 2), r"cube n x n x n, got shape \(2, 3, 2\); pad"),
        (torch.ones(0, 0, 0), r"cube n x n x n, got shape \(0, 0, 0\)"),
        (torch.ones(2, 2, 2, dtype=torch.complex64), "must be real, got torch.complex64; write"),
        (torch.full((2, 2, 2), torch.nan), "must be finite, got 8 NaN or infinite entries"),
        (torch.full((2, 2, 2), torch.inf), "must be finite, got 8 NaN or infinite entries"),
        (torch.zeros(3, 3, 3), "must not be all zeros"),
    ],
)
def test_tables_that_are_refused(table, says):
    with pytest.raises(ValueError, match=says):
        find(table)


@pytest.mark.parametrize("name", ["rank", "starts", "steps"])
@pytest.mark.parametrize("value", [0, -1, True])
def test_numbers_that_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, got {value}"):
        find(direct(2), **{name: value})


@pytest.mark.parametrize("tolerance", [0.0, 1.0, -1e-3, float("nan")])
def test_tolerances_that_are_refused(tolerance):
    with pytest.raises(ValueError, match=f"tolerance must be from 1e-14.*, got {tolerance}"):
        find(direct(2), tolerance=tolerance)
