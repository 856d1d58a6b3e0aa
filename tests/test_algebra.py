import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from cases import ALGEBRAS

import nplex.algebra.table
from nplex.algebra import (
    Algebra,
    clifford,
    complex_,
    cyclic,
    direct,
    dual,
    known_algorithm,
    matrices,
    named,
    octonion,
    quaternion,
    real,
    sedenion,
    split_complex,
    split_quaternion,
)

LAWS = {
    "real": {"commutative", "associative", "alternative", "normed"},
    "complex": {"commutative", "associative", "alternative", "normed"},
    "split_complex": {"commutative", "associative", "alternative"},
    "dual": {"commutative", "associative", "alternative"},
    "quaternion": {"associative", "alternative", "normed"},
    "split_quaternion": {"associative", "alternative"},
    "octonion": {"alternative", "normed"},
    "sedenion": set(),
    "cyclic(5)": {"commutative", "associative", "alternative"},
    "matrices(2)": {"associative", "alternative"},
    "direct(3)": {"commutative", "associative", "alternative"},
}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def by_name(algebra):
    return algebra.name


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_those_of_the_books(name):
    assert set(named(name).laws) == LAWS[name]


@pytest.mark.parametrize("algebra", ALGEBRAS, ids=by_name)
def test_multiply_is_bilinear_in_units(algebra):
    eye = torch.eye(algebra.n, dtype=torch.float64)
    for k, j in itertools.product(range(algebra.n), repeat=2):
        assert torch.equal(algebra.multiply(eye[k], eye[j]), algebra.table[k, :, j])


@pytest.mark.parametrize("algebra", ALGEBRAS, ids=by_name)
def test_unit_leaves_everything_as_it_is(algebra):
    x = random(7, algebra.n)
    unit = algebra.unit.expand(7, -1)
    torch.testing.assert_close(algebra.multiply(unit, x), x)
    torch.testing.assert_close(algebra.multiply(x, unit), x)


@pytest.mark.parametrize("algebra", ALGEBRAS, ids=by_name)
def test_conjugate_is_an_involution_that_reverses_products(algebra):
    x, y = random(7, algebra.n), random(7, algebra.n)
    torch.testing.assert_close(algebra.conjugate(algebra.conjugate(x)), x)
    left, right = (
        algebra.conjugate(algebra.multiply(x, y)),
        algebra.multiply(algebra.conjugate(y), algebra.conjugate(x)),
    )
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("algebra", [real, complex_, quaternion, octonion], ids=by_name)
def test_normed_means_norms_multiply(algebra):
    x, y = random(50, algebra.n), random(50, algebra.n)
    torch.testing.assert_close(algebra.multiply(x, y).norm(dim=-1), x.norm(dim=-1) * y.norm(dim=-1))


def test_sedenions_have_zero_divisors():
    basis = torch.eye(16, dtype=torch.float64)
    pairs = [basis[a] + sign * basis[b] for a in range(1, 8) for b in range(8, 16) for sign in (1, -1)]
    assert any(sedenion.multiply(x, y).norm() < 1e-12 for x, y in itertools.combinations(pairs, 2))


def test_quaternion_is_hamiltons():
    i, j, k = (torch.eye(4)[m] for m in (1, 2, 3))
    assert torch.equal(quaternion.multiply(i, j), k)
    assert torch.equal(quaternion.multiply(j, k), i)
    assert torch.equal(quaternion.multiply(k, i), j)
    assert torch.equal(quaternion.multiply(quaternion.multiply(i, j), k), -torch.eye(4)[0])


def test_matrices_is_the_matrix_product():
    x, y = random(5, 3, 3), random(5, 3, 3)
    torch.testing.assert_close(matrices(3).multiply(x.flatten(1), y.flatten(1)).unflatten(1, (3, 3)), x @ y)


def test_cyclic_is_circular_convolution():
    x, y = random(5, 6), random(5, 6)
    expected = torch.fft.ifft(torch.fft.fft(x) * torch.fft.fft(y)).real
    torch.testing.assert_close(cyclic(6).multiply(x, y), expected)


def test_complex_is_torchs():
    x, y = random(5, 2), random(5, 2)
    expected = torch.view_as_real(torch.view_as_complex(x) * torch.view_as_complex(y))
    torch.testing.assert_close(complex_.multiply(x, y), expected)


def test_direct_is_the_product_number_by_number():
    x, y = random(5, 4), random(5, 4)
    torch.testing.assert_close(direct(4).multiply(x, y), x * y)


@pytest.mark.parametrize(("p", "q", "r"), [(2, 0, 0), (0, 3, 0), (1, 1, 1), (2, 1, 0)])
def test_clifford_generators_square_to_their_sign_and_anticommute(p, q, r):
    algebra = clifford(p, q, r)
    eye = torch.eye(algebra.n, dtype=torch.float64)
    generators = eye[1 : 1 + p + q + r]
    for number, e in enumerate(generators):
        square = 1.0 if number < p else -1.0 if number < p + q else 0.0
        assert torch.equal(algebra.multiply(e, e), square * eye[0])
    for e, f in itertools.combinations(generators, 2):
        assert torch.equal(algebra.multiply(e, f), -algebra.multiply(f, e))


def test_small_clifford_algebras_are_the_known_ones():
    assert torch.equal(clifford(0, 1).table, complex_.table)
    assert torch.equal(clifford(0, 2).table, quaternion.table)
    assert torch.equal(clifford(1).table, split_complex.table)
    assert torch.equal(clifford(0, 0, 1).table, dual.table)


@pytest.mark.parametrize(
    ("algebra", "rank"),
    [(real, 1), (complex_, 3), (split_complex, 2), (dual, 3), (quaternion, 8), (split_quaternion, 7),
     (matrices(2), 7), (direct(6), 6), (cyclic(2), 2)],
    ids=str,
)  # fmt: skip
def test_known_algorithms_are_exact(algebra, rank):
    algorithm = known_algorithm(algebra)
    assert algorithm.rank == rank
    assert torch.equal(algorithm.table(), algebra.table)
    assert algorithm.growth <= 2.1


def test_no_algorithm_on_file_is_none():
    assert known_algorithm(octonion) is None


def test_table_is_a_copy():
    quaternion.table.zero_()
    assert quaternion.table.abs().sum() == 16


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_laws_do_not_depend_on_the_scale(scale):
    assert Algebra.from_table(torch.randn(4, 4, 4) * scale).laws == ()
    assert Algebra.from_table(quaternion.table * scale).laws == ("associative", "alternative")


def test_whole_numbers_are_multiplied_as_numbers():
    half = Algebra.from_table(quaternion.table / 2)
    assert half.multiply(torch.tensor([1, 0, 0, 0]), torch.tensor([0, 3, 0, 0])).tolist() == [0, 1.5, 0, 0]


def test_arrays_make_tables():
    assert Algebra.from_table(quaternion.table.numpy()) == quaternion == clifford(0, 2)


def test_algebras_are_values():
    assert clifford(0, 2).entries == quaternion.entries
    assert {direct(3): 1}[direct(3)] == 1


def test_from_products_makes_the_quaternions():
    products = {("i", "i"): "-1", ("j", "j"): "-1", ("k", "k"): {"1": -1.0}, ("i", "j"): "k", ("j", "i"): "-k",
                ("j", "k"): "i", ("k", "j"): "-i", ("k", "i"): "j", ("i", "k"): {"j": -1.0}}  # fmt: skip
    assert torch.equal(Algebra.from_products(["1", "i", "j", "k"], products).table, quaternion.table)


def test_str_shows_the_table():
    text = str(dual)
    assert "commutative" in text
    assert text.splitlines()[-1].split() == ["eps", "|", "eps", "0"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([[[1.0, 2.0]]], r"table\[0\]\[0\] must have 1 numbers"),
        ([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0]]], r"table\[1\] must have 2 rows"),
        ([[[float("nan")]]], r"table\[0, 0, 0\] must be a finite number, got nan"),
        (torch.tensor([[[1.0, 0.0], [0.0, float("inf")]], [[0.0, 1.0], [1.0, 0.0]]]), r"table\[0, 1, 1\].*inf"),
        ([], "at least one entry"),
        (5, "a table is n x n x n numbers, got 5"),
        (torch.zeros(2, 2, 3), r"table\[0\]\[0\] must have 2 numbers"),
    ],
)
def test_wrong_tables_name_the_entry(table, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Algebra.from_table(table)


@pytest.mark.parametrize("bad", [float("nan"), -float("inf"), True, "1", None, 1j, 10**400, [1.0], torch.ones(())])
@pytest.mark.parametrize("good", [1.0, 2, Fraction(1, 2), np.float32(0.5), np.int64(3)])
def test_one_wrong_entry_among_good_ones_is_named(good, bad, unchecked):
    table = [[[good] * 3 for _ in range(3)] for _ in range(3)]
    assert Algebra.from_table(table).entries[2][1][0] == float(good)
    table[1][2][0] = bad
    with pytest.raises(ValueError, match=r"table\[1, 2, 0\] must be a finite number, got "):
        Algebra.from_table(table)
    with pytest.raises(ValueError, match=r"table\[1, 2, 0\] must be a finite number, got "):
        Algebra("own", tuple(tuple(map(tuple, face)) for face in table), ("a", "b", "c"))


def test_the_numbers_of_a_large_table_are_not_checked_one_by_one(monkeypatch):
    monkeypatch.setattr(nplex.algebra.table, "_finite", lambda entry: pytest.fail(f"looked at {entry} alone"))
    assert Algebra.from_table(cyclic(17).table).entries == cyclic(17).entries
    assert Algebra.from_table(cyclic(17).table.long()).entries == cyclic(17).entries


@pytest.mark.parametrize(
    ("products", "message"),
    [
        ({}, r"the product i \* i is missing"),
        ({("i", "i"): "-q"}, r"i \* i = 'q': no such unit"),
        ({("i", "i"): -1}, r"i \* i must be a unit, '0', or numbers for units"),
        ({("i", "q"): "1"}, r"'q' is not a unit; the units are 1, i"),
    ],
)
def test_wrong_products_are_named(products, message, unchecked):
    with pytest.raises(ValueError, match=message):
        Algebra.from_products(["1", "i"], products)


@pytest.mark.parametrize(
    "text", ["octonions", "clifford", "clifford()", "clifford(-1)", "cyclic(0)", "cyclic(2,3)", "clifford(9,9)", ""]
)
def test_unknown_names_say_which_there_are(text):
    with pytest.raises(ValueError, match=r"no algebra is called|needs"):
        named(text)


def test_named_finds_families():
    assert named("clifford(1, 1)").entries == clifford(1, 1).entries
    assert named("cyclic(5)").n == 5


def test_conjugate_of_an_own_table_says_what_to_do():
    with pytest.raises(ValueError, match=r"own has no conjugation; give one"):
        Algebra.from_table([[[1.0]]]).conjugate(torch.ones(1))


def test_there_must_be_a_name_for_each_unit():
    with pytest.raises(ValueError, match="a table of 2 faces needs 2 units, got 1"):
        Algebra.from_table(quaternion.table[:2, :2, :2], units=["1"])


def test_zero_is_no_name_of_a_unit():
    with pytest.raises(ValueError, match="a unit cannot be called '0'"):
        Algebra.from_products(["0"], {("0", "0"): "0"})


def test_units_must_differ():
    with pytest.raises(ValueError, match="different names"):
        Algebra.from_table(torch.zeros(2, 2, 2), units=["a", "a"])
