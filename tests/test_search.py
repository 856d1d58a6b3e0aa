"""Does the search find the known ranks, tell the impossible from the not found, and say so?"""

import dataclasses
import re

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import BilinearAlgorithm, find, generic_rank
from nplex.algebra.search import equations
from nplex.algebra.search.equations import Moves, conjugate_gradients, factor_gram, factorized, gradient
from nplex.algebra.search.factors import as_algorithm, balanced, check_factors, stacked, sum_of_products
from nplex.algebra.search.ranks import GOOD_GROWTH


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
    for seed in range(2 if n < 6 else 1):
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


def test_a_random_table_of_many_dimensions():
    search = find(random_table(12, 0))
    assert search.verdict == "exact"
    assert generic_rank(12) <= search.rank <= generic_rank(12) + 2
    assert search.error <= 1e-12
    assert search.growth <= GOOD_GROWTH


@pytest.mark.slow
@pytest.mark.parametrize(("n", "seeds"), [(10, 5), (11, 2), (12, 5), (13, 2), (14, 2), (16, 5), (20, 3)])
def test_many_random_tables_of_many_dimensions(n, seeds):
    for seed in range(100, 100 + seeds):
        search = find(random_table(n, seed))
        assert search.verdict == "exact"
        assert search.rank <= generic_rank(n) + 2
        assert search.error <= 1e-12
        assert search.growth <= GOOD_GROWTH


@pytest.mark.slow
@pytest.mark.parametrize(("n", "rank"), [(10, 36), (11, 43), (12, 51), (16, 90)])
def test_the_generic_rank_itself_of_many_dimensions(n, rank):
    assert find(random_table(n, 1), rank).verdict == "exact"


@pytest.mark.slow
@pytest.mark.parametrize(("table", "rank"), [(direct(12), 12), (cyclic(10), 14), (cyclic(12), 17)])
def test_special_tables_of_many_dimensions(table, rank):
    search = find(table)
    assert (search.verdict, search.rank) == ("exact", rank)
    assert search.error <= 1e-12


def test_what_conjugate_gradients_do_not_solve_is_factorized(monkeypatch):
    monkeypatch.setattr(equations, "MOST_PRODUCTS", 3)
    search = find(random_table(10, 0), 38, starts=1)
    assert search.verdict == "exact"


SIZES = [(3, 5), (4, 7), (4, 3), (5, 2)]


def some_factors(n: int, rank: int) -> Float[Tensor, "2 3 n R"]:
    """Of two starts."""
    return torch.randn(2, 3, n, rank, generator=torch.Generator().manual_seed(n * rank), dtype=torch.float64)


def derivatives(factors: Float[Tensor, "3 n R"]) -> Float[Tensor, "n**3 3*n*R"]:
    """J, by automatic differentiation."""
    n = factors.shape[1]
    return torch.autograd.functional.jacobian(sum_of_products, factors).reshape(n**3, factors.numel())


@pytest.mark.parametrize(("n", "rank"), SIZES)
def test_products_with_the_derivatives(n, rank):
    factors, y = some_factors(n, rank), torch.stack([random_table(n, 0), random_table(n, 1)])
    for start in range(2):
        jacobian = derivatives(factors[start])
        torch.testing.assert_close(gradient(y, factors)[start].flatten(), jacobian.mT @ y[start].flatten())
        torch.testing.assert_close(factor_gram(factors)[start], jacobian.mT @ jacobian)


@pytest.mark.parametrize(("n", "rank"), SIZES)
def test_factorizations_solve_the_damped_equations(n, rank):
    factors, wish = some_factors(n, rank), some_factors(n, rank).flip(0)
    shift = torch.tensor([0.01, 0.5], dtype=torch.float64)
    by_factorization = factorized(factors, wish)(shift)
    for start in range(2):
        jacobian = derivatives(factors[start])
        damped = jacobian.mT @ jacobian + shift[start] * torch.eye(wish[0].numel(), dtype=torch.float64)
        expected = torch.linalg.solve(damped, wish[start].flatten()).reshape(wish[start].shape)
        torch.testing.assert_close(by_factorization[start], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("n", "rank"), [(3, 5), (4, 7), (5, 10)])
@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_moves_by_the_smaller_gram_matrix_are_those_by_the_larger(n, rank, weight):
    factors, residual = some_factors(n, rank), torch.stack([random_table(n, 0), random_table(n, 1)])
    damping, weights = torch.tensor([[0.1, 0.5], [weight, weight / 2]], dtype=torch.float64)
    wish = gradient(residual, factors) - weights[:, None, None, None] * factors
    moves = Moves(n, rank).at(factors, residual, weights)(damping)
    torch.testing.assert_close(moves, factorized(factors, wish)(damping + weights), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rank", [20, 30])
@pytest.mark.parametrize("weight", [0.0, 0.05])
def test_moves_by_conjugate_gradients_are_those_by_factorization(rank, weight):
    factors = some_factors(9, rank)[:1] * 0.3
    damping, weights = torch.tensor([[0.1], [weight]], dtype=torch.float64)
    for size, near in ((1.0, 0.05), (1e-9, 2e-3)):
        residual = random_table(9, 0)[None] * size
        ways = Moves(20, 200), Moves(1, 1)
        rough, exact = (moves.at(factors, residual, weights)(damping) for moves in ways)
        assert float((rough - exact).norm()) < near * float(exact.norm())


def test_entries_that_are_not_free_do_not_move():
    factors, wish = some_factors(3, 4), some_factors(3, 4).flip(0)
    free = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    solved = factorized(factors, wish, free.flatten().nonzero()[:, 0])(torch.ones(2, dtype=torch.float64))
    assert not solved[:, ~free].any()
    damped = factor_gram(factors)[0] + torch.eye(36, dtype=torch.float64)
    rows = free.flatten()
    expected = torch.linalg.solve(damped[rows][:, rows], wish[0][free])
    torch.testing.assert_close(solved[0][free], expected)


def test_singular_equations_give_no_move():
    nothing, wish = torch.zeros(1, 3, 3, 5, dtype=torch.float64), some_factors(3, 5)[:1]
    assert factorized(nothing, wish)(torch.zeros(1, dtype=torch.float64)).isnan().all()
    solution, solved = conjugate_gradients(nothing[0], wish[0], 0.0, 0.1)
    assert solution.isnan().all()
    assert not solved


def perturbed(table: Tensor, share: float) -> Tensor:
    noise = torch.randn(table.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return table + share * noise * table.norm() / noise.norm()


@pytest.mark.parametrize(("n", "rank"), [(2, 3), (4, 7), (8, 24), (10, 37)])
def test_a_warm_start_takes_few_steps_and_stays_near(n, rank):
    cold = find(random_table(n, 0), rank)
    warm = find(perturbed(random_table(n, 0), 1e-3), start=cold.algorithm)
    assert (warm.verdict, warm.rank, len(warm.attempts)) == ("exact", rank, 1)
    assert warm.error <= 1e-12
    assert warm.attempts[0].steps <= min(8, cold.attempts[-1].steps - 1)
    for now, before in zip(warm.algorithm, cold.algorithm, strict=True):
        assert float((now - before).norm()) < 0.05 * float(before.norm())


@pytest.mark.slow
@pytest.mark.parametrize("n", [12, 16, 20])
@pytest.mark.parametrize("share", [1e-5, 1e-3, 1e-2])
def test_warm_starts_of_many_dimensions(n, share):
    cold = find(random_table(n, 0))
    warm = find(perturbed(random_table(n, 0), share), start=cold.algorithm)
    assert (warm.verdict, warm.rank, len(warm.attempts)) == ("exact", cold.rank, 1)
    assert warm.attempts[0].steps <= 15


def test_a_warm_start_far_from_the_table_keeps_to_the_factors_scale():
    """No penalty moves it: a start that solves a table 10 % away is solved by the first start."""
    cold = find(random_table(4, 0), 8)
    warm = find(perturbed(random_table(4, 0), 0.1), start=cold.algorithm, starts=1)
    assert warm.verdict == "exact"


def test_a_start_that_is_exact_is_given_back():
    cold = find(random_table(4, 0), 8)
    for start in (cold.algorithm, cold.algorithm.to(torch.float32)):
        warm = find(random_table(4, 0), start=start)
        assert warm.error <= 1e-12
        assert warm.attempts[0].steps <= 2
        torch.testing.assert_close(warm.algorithm.decode, cold.algorithm.decode, rtol=0, atol=1e-4)


def test_random_starts_follow_a_start_that_leads_nowhere():
    useless = BilinearAlgorithm(*(torch.zeros(2, 3) for _ in range(3)))
    search = find(cayley_dickson(1), 3, start=useless)
    assert search.verdict == "exact"
    assert len(search.attempts) > 1


def test_balanced_columns_have_equal_norms_but_for_terms_of_zeros():
    factors = some_factors(4, 8)[0]
    factors[1, :, 3] = 0
    even = balanced(factors)
    torch.testing.assert_close(sum_of_products(even), sum_of_products(factors))
    torch.testing.assert_close(even[:, :, 3], factors[:, :, 3])
    norms = even[:, :, 4:].norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    torch.testing.assert_close(stacked(as_algorithm(factors)), factors)


def test_starts_that_are_no_algorithms():
    for start in (torch.zeros(3, 3, 5), tuple(torch.zeros(3, 3, 5))):
        with pytest.raises(TypeError, match=f"start must be a BilinearAlgorithm, got {type(start).__name__}; give"):
            check_factors(start, 3, None)


@pytest.mark.parametrize(
    ("shapes", "rank", "value", "says"),
    [
        ([(4, 5)] * 3, None, 1.0, r"three factors 3 x R for this table of n = 3, got shapes \[\(4, 5\)"),
        ([(3, 5), (3, 4), (3, 5)], None, 1.0, r"three factors 3 x R .* \(3, 4\)"),
        ([(3,)] * 3, None, 1.0, r"three factors 3 x R .* \(3,\)"),
        ([(3, 0)] * 3, None, 1.0, r"three factors 3 x R .* \(3, 0\)"),
        ([(3, 5)] * 3, 6, 1.0, "start has 5 products but rank is 6; leave out one"),
        ([(3, 5)] * 3, None, float("nan"), "start must be real and finite"),
        ([(3, 5)] * 3, None, 1j, "start must be real and finite"),
    ],
)
def test_starts_that_do_not_fit(shapes, rank, value, says):
    start = BilinearAlgorithm(*(torch.full(shape, value) for shape in shapes))
    with pytest.raises(ValueError, match=says):
        find(random_table(3, 0), rank, start=start)


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


def test_a_rounded_table_of_many_dimensions():
    change = random_table(12, 4)[:3]
    rounded = torch.einsum("kij,ka,ib,jc->abc", direct(12), *change).float()
    assert find(rounded, 12, tolerance=1e-6).verdict == "exact"
    assert find(random_table(12, 0).float(), 53, tolerance=1e-6).error <= 1e-6


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
        (torch.ones(3, 3, 3, device="meta"), "must have numbers, got a tensor on the meta device; load"),
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
