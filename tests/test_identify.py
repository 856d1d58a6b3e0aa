"""Are hidden algebras found, are random tables left unnamed, and is bad input refused?"""

import dataclasses

import pytest
import torch

import nplex.rule_names
from nplex.algebra import BilinearAlgorithm, cyclic, direct, dual, find, identify, laws, named, octonion, quaternion
from nplex.algebra.classes import classes
from nplex.algebra.identification import Invariants
from nplex.algebra.identification.bases import (
    balanced,
    condition,
    random_orthogonal,
    starts,
    transformed,
    unital_isotopes,
)
from nplex.algebra.identification.fit import _equations
from nplex.nn import LearnedRule, Linear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def bases_of(n, most, random):
    """Three matrices of exactly this condition, their singular values in even steps of the logarithm."""
    left, right = random_orthogonal(6, n, random).reshape(2, 3, n, n)
    return left * torch.logspace(0, -1, n, base=most, dtype=torch.float64) @ right


def hidden(table, noise=0.0, most=5.0, seed=0):
    """The table after a random change of bases, of norm 1, and noise of that norm."""
    random, n = generator(seed), table.shape[0]
    moved = transformed(bases_of(n, most, random), table)
    added = torch.randn(n, n, n, generator=random, dtype=torch.float64)
    return moved / moved.norm() + noise * added / added.norm()


def class_of(n, name):
    return next(each for each in classes(n) if each.name == name)


@pytest.mark.parametrize(("n", "most"), [(1, 1.0), (2, 5.0), (3, 10.0), (4, 10.0), (5, 5.0)])
def test_exact_tables_are_named(n, most):
    for each in classes(n):
        found = identify(hidden(each.table, most=most))
        assert found.name == found.distances[0].name == each.name
        assert found.rank == each.rank
        assert found.distances[0].distance < 1e-6


@pytest.mark.parametrize(
    ("n", "name"), [(3, "cross product"), (4, "quaternion"), (4, "matrices(2)"), (4, "direct(4)")]
)
def test_noisy_tables_are_named(n, name):
    found = identify(hidden(class_of(n, name).table, 0.01))
    assert found.name == name
    assert found.distances[0].distance < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 8])
def test_all_classes_are_named(n):
    for each in classes(n):
        assert identify(hidden(each.table, 0.01)).name == each.name


@pytest.mark.parametrize(("name", "n"), [("complex", 3), ("split_complex", 3), ("cyclic(3)", 4)])
def test_what_uses_fewer_dimensions_has_no_name(name, n):
    """All known ones come as near to it as one likes."""
    part = named(name)
    table = torch.zeros(n, n, n, dtype=torch.float64)
    table[: part.n, : part.n, : part.n] = part.table
    for noise in (0.0, 1e-3):
        found = identify(hidden(table, noise))
        assert found.name is None
        assert f"uses only {part.n} x {part.n} x {part.n} of its dimensions" in found.verdict
        assert found.invariants.multilinear_ranks == (part.n,) * 3


def test_at_n_2_only_what_is_much_nearer_than_the_noise_uses_fewer_dimensions():
    assert "uses only 1 x 1 x 1 of its dimensions" in identify(torch.ones(2, 2, 2)).verdict
    assert identify(hidden(direct(2).table, 0.01)).name is not None


@pytest.mark.parametrize("n", [3, 4])
def test_what_is_far_from_all_has_no_name(n):
    """A table of orthogonal slices and one more product, with as much of noise as of it."""
    found = identify(hidden(cyclic(n).table, 1.0, most=1.0))
    assert found.name is None
    assert found.verdict.startswith("no known algebra (nearest: ")


def test_a_verdict_at_n_2_says_that_it_says_little():
    assert "says little" in identify(named("complex")).verdict
    assert "says little" not in identify(dual).verdict


def test_what_is_known_under_several_names_has_one():
    assert identify(named("split_quaternion")).name == identify(named("clifford(1,1,0)")).name == "matrices(2)"
    assert "= split_quaternion" in identify(named("split_quaternion")).verdict


def test_the_text_tells_all():
    text = str(identify(quaternion))
    assert text.splitlines()[0].startswith("quaternion (= clifford(0,2)), relative distance ")
    assert "multilinear ranks 4 x 4 x 4" in text
    assert "associator" in text
    assert len(text.splitlines()) == 3 + 1 + len(classes(4))


def test_the_same_seed_gives_the_same_and_the_random_state_stays():
    state, table = torch.get_rng_state(), hidden(quaternion.table, 0.05)
    first, second = identify(table, seed=3), identify(table, seed=3)
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
    assert torch.equal(state, torch.get_rng_state())


def test_factors_and_algebras_are_taken():
    algorithm = find(direct(3).table, 3).algorithm
    assert identify(algorithm).name == identify(direct(3)).name == "direct(3)"
    assert identify(algorithm).rank == 3
    assert identify(quaternion).invariants.rank_at_least == 6


def test_large_tables_have_invariants_only():
    many = identify(named("clifford(4,0,0)"))
    assert many.name is None
    assert "up to n = 9" in many.verdict
    assert many.invariants.associator < 1e-9


def test_rules_of_a_model_are_identified():
    model = torch.nn.Sequential(Linear(8, 8, rule=quaternion), Linear(6, 6, rule=LearnedRule(3, start=cyclic(3))))
    assert {name: found.name for name, found in nplex.rule_names.identify(model).items()} == {
        "0.rule": "quaternion", "1.rule": "cyclic(3)",
    }  # fmt: skip
    assert nplex.rule_names.identify(model[0].rule).name == nplex.rule_names.identify(quaternion).name == "quaternion"
    with torch.no_grad():
        model[1].rule.table.zero_()
    with pytest.raises(ValueError, match=r"1\.rule: the rule must not be all zeros"):
        nplex.rule_names.identify(model)
    with pytest.raises(ValueError, match="the model has no rule"):
        nplex.rule_names.identify(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 2, 2), "must not be all zeros"),
        (torch.ones(2, 2, 3), r"must be a cube n x n x n, got shape \(2, 2, 3\)"),
        (torch.ones(2, 2), "must be a cube"),
        (torch.full((2, 2, 2), float("nan")), "must be finite, got 8 NaN"),
        (torch.ones(2, 2, 2, dtype=torch.complex64), "must be real"),
        (torch.ones(2, 2, 2, device="meta"), "meta device"),
        (BilinearAlgorithm(*torch.ones(3, 3, 4, device="meta")), "meta device"),
        (BilinearAlgorithm(*torch.ones(3, 3, 4, dtype=torch.complex128)), "must be real"),
        (
            BilinearAlgorithm(torch.ones(3, 4), torch.ones(2, 4), torch.ones(3, 4)),
            "three n x R matrices of one shape",
        ),
    ],
)
def test_bad_tables_are_refused(bad, message, unchecked):
    with pytest.raises(ValueError, match=message):
        identify(bad)


def test_any_scale_layout_and_default_device():
    assert identify(quaternion.table * 1e308).name == identify(quaternion.table.to_sparse()).name == "quaternion"
    with torch.device("meta"):
        assert identify(dual).name == "dual"


def test_noise_decides_at_n_2():
    """A complex table next to a dual one is either, depending on what its numbers are good for."""
    near = dual.table + torch.tensor([[[0.0, 0], [0, 0]], [[0, -0.003], [0, 0]]], dtype=torch.float64)
    assert identify(near, noise=1e-4).name == "complex"
    assert identify(near, noise=0.05).name == "dual"
    with pytest.raises(ValueError, match=r"noise must be from 0\.0001 to 0\.1"):
        identify(near, noise=0.0)


def test_what_is_not_a_rule_is_refused(unchecked):
    with pytest.raises(TypeError, match="must be a tensor, an Algebra or a BilinearAlgorithm, got str"):
        identify("quaternion")


def test_the_laws_hold_in_all_isotopes_with_a_unit():
    """Also where the algebra has one; octonions are alternative, not associative."""
    for table, law in (
        (octonion.table, "alternator"),
        (quaternion.table, "associator"),
        (cyclic(3).table, "commutator"),
    ):
        facts = Invariants.of(hidden(table))
        assert getattr(facts, law) < 1e-9
        assert facts.multilinear_ranks == (len(table),) * 3
    assert Invariants.of(octonion.table).associator > 0.1
    assert Invariants.of(quaternion.table).commutator > 0.1
    assert Invariants.of(class_of(3, "cross product").table).commutator is None


def test_the_hyperdeterminants_sign_is_that_of_the_class():
    for name, sign in (("complex", -1), ("split_complex", 1), ("dual", 0)):
        value = Invariants.of(hidden(class_of(2, name).table)).hyperdeterminant
        assert (abs(value) > 1e-12) * (1 if value > 0 else -1) == sign


@pytest.mark.parametrize(("n", "name", "dimension"), [(2, "complex", 4), (4, "quaternion", 11), (8, "octonion", 30)])
def test_codimensions(n, name, dimension):
    """3 n^2 less the dimension of what leaves the table as it is: 4 for complex numbers, 11 for quaternions."""
    assert class_of(n, name).codimension == n**3 - (3 * n**2 - dimension)


def test_a_step_solves_the_normal_equations():
    """Elimination of one side against all unknowns at once, with the derivative that torch finds."""
    n, start, damping = 3, bases_of(3, 2.0, generator())[None], 0.01
    target = hidden(direct(3).table, seed=1)
    here = transformed(start[0], direct(3).table)

    def moved(flat):
        return transformed(flat.reshape(3, n, n) + torch.eye(n, dtype=torch.float64), here).flatten()

    jacobian = torch.autograd.functional.jacobian(moved, torch.zeros(27, dtype=torch.float64))
    matrix = jacobian.mT @ jacobian + damping * here.square().sum() / n * torch.eye(27, dtype=torch.float64)
    change = torch.linalg.solve(matrix, jacobian.mT @ (target - here).flatten()).reshape(3, n, n)
    left = target - transformed(start, direct(3).table[None])
    stepped = _equations(target, start, left, torch.zeros(1))(torch.tensor([damping], dtype=torch.float64))
    assert torch.allclose(stepped, (change + torch.eye(n)) @ start)


def test_balanced_sides():
    table = hidden(quaternion.table)
    even, bases = balanced(table, 30, 0.0)
    assert torch.allclose(transformed(bases, table), even)
    for side in range(3):
        gram = even.movedim(side, 0).flatten(1) @ even.movedim(side, 0).flatten(1).mT
        assert torch.allclose(gram, torch.eye(4, dtype=torch.float64) / 4, atol=1e-6)


def test_conditions_of_bases():
    assert torch.allclose(condition(bases_of(4, 30.0, generator())), torch.tensor(30.0, dtype=torch.float64))


def test_isotopes_with_a_unit():
    table = hidden(class_of(3, "triangular 2 x 2 matrices").table)
    isotope = unital_isotopes(table, 2, generator())[0]
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(torch.einsum("k,kij->ij", isotope.unit, isotope.table), eye)
    assert torch.allclose(torch.einsum("kij,j->ik", isotope.table, isotope.unit), eye)
    assert torch.allclose(transformed(isotope.sides, isotope.table), table)
    assert unital_isotopes(class_of(3, "cross product").table, 2, generator()) == []


def test_starts_keep_the_unit_and_the_trace():
    """On tables whose traceless vectors are not orthogonal to the unit."""
    algebra = class_of(3, "triangular 2 x 2 matrices").table
    unit, isotope = laws.unit(algebra), unital_isotopes(hidden(algebra), 1, generator())[0]
    g = starts(algebra, [isotope], 20, generator())[:, 1]
    assert torch.allclose(g @ unit, isotope.unit.expand(20, 3))
    ours, theirs = (torch.einsum("kii->k", each) for each in (algebra, isotope.table))
    assert torch.allclose(theirs @ g, ours.expand(20, 3))
