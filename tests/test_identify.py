"""Are hidden algebras found, are random tables left unnamed, and is bad input refused?"""

import dataclasses

import pytest
import torch

from nplex.algebra import BilinearAlgorithm, cyclic, direct, dual, find, identify, laws, named, octonion, quaternion
from nplex.algebra.identify import NEAR
from nplex.algebra.invariants import hyperdeterminant, invariants
from nplex.algebra.isotopy import bounded, condition, evened, orthogonal_bases, random_bases, transformed
from nplex.algebra.multilinear import smaller
from nplex.algebra.nearest_orbit import Nearest
from nplex.algebra.orbit_descent import descend, normal_matrix
from nplex.algebra.orbits import orbits
from nplex.algebra.plausible import evidence, plausibilities
from nplex.algebra.stabilizer import best_conditioned, stabilizer
from nplex.algebra.unital import random_isomorphisms, unital_isotopes
from nplex.identify import identify as identify_rule
from nplex.identify import identify_model
from nplex.nn import LearnedRule, Linear


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hidden(table, noise=0.0, most=30.0, seed=0):
    """The table after a random change of bases, of norm 1, and noise of that norm."""
    random, n = generator(seed), table.shape[0]
    moved = transformed(random_bases(n, most, random), table)
    added = torch.randn(n, n, n, generator=random, dtype=torch.float64)
    return moved / moved.norm() + noise * added / added.norm()


@pytest.mark.parametrize(("n", "count"), [(2, 3), (3, 6), (4, 3)])
def test_exact_tables_are_named(n, count):
    for orbit in orbits(n)[:count]:
        found = identify(hidden(orbit.algebra, most=10.0))
        assert found.name == orbit.name
        assert found.distances[0].name == orbit.name
        assert found.distances[0].distance < 1e-6


@pytest.mark.parametrize(("name", "noise"), [("quaternion", 0.01), ("matrices(2)", 0.01), ("direct(4)", 0.01)])
def test_noisy_tables_are_named(name, noise):
    orbit = next(orbit for orbit in orbits(4) if orbit.name == name)
    found = identify(hidden(orbit.algebra, noise, most=10.0))
    assert found.name == name
    assert 0.1 * noise < found.distances[0].distance < noise
    assert found.confidence > 0.9
    assert max(row.condition for row in found.distances) <= 1000


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 8])
def test_all_classes_are_named(n):
    for orbit in orbits(n):
        assert identify(hidden(orbit.algebra, 0.01, most=10.0)).name == orbit.name


@pytest.mark.parametrize(("name", "n"), [("complex", 3), ("split_complex", 3), ("cyclic(3)", 4)])
def test_what_uses_fewer_dimensions_has_no_name(name, n):
    """All known ones come as near to it as one likes."""
    part = named(name)
    table = torch.zeros(n, n, n, dtype=torch.float64)
    table[: part.n, : part.n, : part.n] = part.table
    for noise in (0.0, 1e-3):
        found = identify(hidden(table, noise))
        assert found.name is None
        assert found.confidence > 0.9
        assert f"uses only {part.n} x {part.n} x {part.n} of its dimensions" in found.verdict
        assert found.invariants.multilinear_ranks == (part.n,) * 3


def test_at_n_2_only_what_is_much_nearer_than_the_noise_uses_fewer_dimensions():
    assert "uses only 1 x 1 x 1 of its dimensions" in identify(torch.ones(2, 2, 2)).verdict
    assert identify(hidden(direct(2).table, 0.01, seed=2001), noise=0.01).name is not None


def test_the_distance_to_tables_of_fewer_dimensions():
    """Of a table with noise on one, against the table itself; and by how many equations they are cut out."""
    table = torch.zeros(4, 4, 4, dtype=torch.float64)
    table[:2, :3, :2] = torch.randn(2, 3, 2, generator=generator(), dtype=torch.float64)
    added = torch.randn(4, 4, 4, generator=generator(1), dtype=torch.float64)
    noisy = table / table.norm() + 1e-3 * added / added.norm()
    found = {each.ranks: each for each in smaller(noisy)}
    assert found[2, 3, 2].distance < 3**0.5 * 1e-3 < 0.1 < found[2, 2, 2].distance
    assert found[2, 3, 2].codimension == 64 - (12 + 2 * 2 + 3 * 1 + 2 * 2)
    assert (1, 1, 3) not in found
    assert (4, 4, 4) not in found


def test_no_distance_is_above_the_orthogonal_one():
    rows = identify(direct(4)).distances
    assert all(row.distance <= row.orthogonal for row in rows)
    assert max(row.orthogonal - row.distance for row in rows) > 0.1


@pytest.mark.parametrize("n", [3, 4])
def test_random_tables_have_no_name(n):
    found = identify(torch.randn(n, n, n, generator=generator(5)))
    assert found.name is None
    assert min(row.distance for row in found.distances) > NEAR
    assert found.verdict.startswith("no known algebra (nearest: ")


def test_a_verdict_at_n_2_says_that_it_says_little():
    assert "says little" in identify(torch.randn(2, 2, 2, generator=generator())).verdict
    assert "says little" not in identify(dual).verdict


def test_what_is_known_under_several_names_has_one():
    assert identify(named("split_quaternion")).name == identify(named("clifford(1,1,0)")).name == "matrices(2)"
    assert "= split_quaternion" in identify(named("split_quaternion")).verdict


def test_the_text_tells_all():
    text = str(identify(quaternion))
    assert text.splitlines()[0].startswith("quaternion (= clifford(0,2)), relative distance ")
    assert "multilinear ranks 4 x 4 x 4" in text
    assert "associator" in text
    assert len(text.splitlines()) == 3 + 1 + len(orbits(4))


def test_the_same_seed_gives_the_same_and_the_random_state_stays():
    state, table = torch.get_rng_state(), hidden(quaternion.table, 0.05)
    first, second = identify(table, seed=3), identify(table, seed=3)
    assert dataclasses.asdict(first) == dataclasses.asdict(second)
    assert torch.equal(state, torch.get_rng_state())


def test_orthogonal_bases_keep_the_orthogonal_distance():
    table = transformed(orthogonal_bases(1, 4, generator(1))[0], quaternion.table) * 7
    rows = {row.name: row for row in identify(table).distances}
    assert rows["quaternion"].orthogonal < 1e-6
    skewed = {row.name: row for row in identify(hidden(quaternion.table)).distances}
    assert skewed["quaternion"].orthogonal > 0.05


def test_factors_and_algebras_are_taken():
    algorithm = find(direct(3).table, 3).algorithm
    assert identify(algorithm).name == identify(direct(3)).name == "direct(3)"
    assert identify(algorithm).rank == 3
    assert identify(quaternion).invariants.rank_at_least == 6


def test_sizes_without_a_list_of_their_own():
    assert identify(hidden(cyclic(5).table)).name == "cyclic(5)"
    many = identify(named("clifford(4,0,0)"))
    assert many.name is None
    assert "up to n = 9" in many.verdict


def test_rules_of_a_model_are_identified():
    model = torch.nn.Sequential(Linear(8, 8, rule=quaternion), Linear(6, 6, rule=LearnedRule(3, start=cyclic(3))))
    assert {name: found.name for name, found in identify_model(model).items()} == {
        "0.rule": "quaternion", "1.rule": "cyclic(3)",
    }  # fmt: skip
    assert identify_rule(model[0].rule).name == "quaternion"
    with torch.no_grad():
        model[1].rule.table.zero_()
    with pytest.raises(ValueError, match=r"1\.rule: the rule must not be all zeros"):
        identify_model(model)
    with pytest.raises(ValueError, match="the model has no rule"):
        identify_model(torch.nn.Linear(2, 2))


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


def test_what_is_no_rule_is_refused(unchecked):
    with pytest.raises(TypeError, match="must be a tensor, an Algebra or a BilinearAlgorithm, got str"):
        identify("quaternion")
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        identify_model("model")
    with pytest.raises(ValueError, match="too rare among 2 x 2 matrices"):
        random_bases(2, 1.0, generator())


def test_invariants_do_not_depend_on_the_bases():
    for algebra, commutes, associates in (
        (quaternion, False, True),
        (cyclic(4), True, True),
        (octonion, False, False),
    ):
        facts = invariants(hidden(algebra.table, most=5.0))
        assert facts.multilinear_ranks == (algebra.n,) * 3
        assert (facts.commutator < 1e-9) == commutes
        assert (facts.associator < 1e-9) == associates
        assert facts.alternator < 1e-9


def test_the_hyperdeterminant_at_n_2():
    signs = {"complex": -1, "split_complex": 1, "dual": 0}
    for orbit in orbits(2):
        table = hidden(orbit.algebra, most=5.0)
        assert (
            torch.where(hyperdeterminant(table).abs() < 1e-12, 0, hyperdeterminant(table).sign()) == signs[orbit.name]
        )
    mirror = torch.eye(2, dtype=torch.float64).repeat(3, 1, 1)
    mirror[1, 1, 1] = -1.0
    for name, signature in (("complex", (2, 0)), ("split_complex", (1, 1)), ("dual", (1, 0))):
        for table in (named(name).table, transformed(mirror, named(name).table), hidden(named(name).table, most=5.0)):
            assert invariants(table).signature == signature


def test_the_normal_matrix_is_the_jacobians():
    table = torch.randn(1, 3, 3, 3, generator=generator(), dtype=torch.float64)

    def move(flat):
        p, q, r = flat.reshape(3, 3, 3)
        sides = ("ka,aij->kij", p), ("ia,kaj->kij", q), ("ja,kia->kij", r)
        return sum(torch.einsum(form, side, table[0]) for form, side in sides)

    jacobian = torch.autograd.functional.jacobian(move, torch.zeros(27, dtype=torch.float64)).reshape(27, 27)
    assert torch.allclose(normal_matrix(table)[0], jacobian.mT @ jacobian)


def skew_moves(n):
    """A column for each (p, q, r) with one entry of one side above the diagonal and its negative below; the scale."""
    columns = []
    for side in range(3):
        for a, b in torch.triu_indices(n, n, 1).mT.tolist():
            move = torch.zeros(3, n, n, dtype=torch.float64)
            move[side, a, b], move[side, b, a] = 0.5**0.5, -(0.5**0.5)
            columns.append(move.flatten())
    scale = torch.zeros(3, n, n, dtype=torch.float64)
    scale[0] = torch.eye(n) / n**0.5
    return torch.stack([*columns, scale.flatten()], dim=1)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_a_step_solves_the_normal_equations(orthogonal):
    """Elimination by sides against all unknowns at once."""
    n, start = 4, orthogonal_bases(1, 4, generator())
    target = transformed(start[0], quaternion.table) + 0.1 * torch.randn(4, 4, 4, generator=generator(1)).double()
    here = transformed(start, quaternion.table[None])
    moves = skew_moves(n) if orthogonal else torch.eye(48, dtype=torch.float64)
    sides = ("kij,aij->ka", "kij,kaj->ia", "kij,kia->ja")
    gradient = torch.stack([torch.einsum(form, target - here[0], here[0]) for form in sides]).flatten()
    matrix = moves.mT @ normal_matrix(here)[0] @ moves
    weight = 1e-2 * here.square().sum() / n
    change = moves @ torch.linalg.solve(matrix + weight * torch.eye(len(matrix)), moves.mT @ gradient)
    change = change.reshape(3, n, n)
    moved = torch.linalg.matrix_exp(change) if orthogonal else change + torch.eye(n)
    stepped = descend(quaternion.table[None], target, start, 1, orthogonal=orthogonal)
    assert stepped.error < (target - here[0]).norm()
    assert torch.allclose(stepped.bases[0], moved @ start[0])


def test_what_leaves_a_table_as_it_is():
    """Its dimension: 4 for complex numbers, 11 for quaternions, 30 for octonions."""
    for table, dimension in ((named("complex").table, 4), (quaternion.table, 11), (octonion.table, 30)):
        fixing = stabilizer(table)
        assert fixing.shape == (dimension, 3, table.shape[0], table.shape[0])
        size = torch.randn(dimension, 1, 1, 1, generator=generator(), dtype=torch.float64)
        assert torch.allclose(transformed(torch.linalg.matrix_exp((size * fixing).sum(0)), table), table)


def test_equal_bases_come_to_the_same_condition():
    """From bases of a table, and from those moved far along what leaves it as it is."""
    for name in ("matrices(2)", "direct(4)", "clifford(0,0,2)"):
        orbit = next(orbit for orbit in orbits(4) if orbit.name == name)
        bases, fixing = random_bases(4, 30.0, generator())[None], orbit.stabilizer[None]
        size = torch.randn(fixing.shape[1], 1, 1, 1, generator=generator(1), dtype=torch.float64)
        moved = bases @ torch.linalg.matrix_exp((2 * size * fixing[0]).sum(0))
        best, other = best_conditioned(bases, fixing), best_conditioned(moved, fixing)
        assert condition(moved) > 2 * condition(bases) > 2 * condition(best) - 1e-9
        assert torch.allclose(condition(other), condition(best), rtol=1e-2)
        assert torch.allclose(transformed(other[0], orbit.algebra), transformed(bases[0], orbit.algebra))


def test_bases_stay_orthogonal_or_bounded():
    starts, target = orthogonal_bases(4, 3, generator()), torch.randn(3, 3, 3, generator=generator(1)).double()
    table = direct(3).table
    rigid = descend(table.expand(4, 3, 3, 3), target, starts, 10, orthogonal=True)
    assert torch.allclose(condition(rigid.bases), torch.ones(4, dtype=torch.float64))
    assert torch.allclose(
        (target - transformed(rigid.bases, table.expand(4, 3, 3, 3))).flatten(1).norm(dim=1), rigid.error
    )
    wild = torch.diag_embed(torch.tensor([1.0, 1e-3, 1e-9], dtype=torch.float64)).expand(3, 3, 3)
    assert torch.allclose(condition(bounded(wild, 100.0)), torch.tensor(100.0, dtype=torch.float64))


def test_evened_sides():
    even, bases = evened(hidden(quaternion.table), 30, 0.0)
    assert torch.allclose(transformed(bases, hidden(quaternion.table)), even)
    gram = even.reshape(4, 16) @ even.reshape(4, 16).mT
    assert torch.allclose(gram, torch.eye(4, dtype=torch.float64) / 4, atol=1e-8)


def test_isotopes_with_a_unit():
    table = hidden(next(orbit for orbit in orbits(3) if orbit.name == "triangular 2 x 2 matrices").algebra)
    isotope = unital_isotopes(table, 2, generator())[0]
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(torch.einsum("k,kij->ij", isotope.unit, isotope.table), eye)
    assert torch.allclose(torch.einsum("kij,j->ik", isotope.table, isotope.unit), eye)
    assert torch.allclose(transformed(isotope.sides, isotope.table), table)
    assert unital_isotopes(orbits(3)[-1].algebra, 2, generator()) == []


def test_starts_keep_the_unit_and_the_trace():
    """On tables whose traceless vectors are not orthogonal to the unit."""
    algebra = next(orbit for orbit in orbits(3) if orbit.name == "triangular 2 x 2 matrices").algebra
    table, unit = hidden(algebra), laws.unit(algebra)
    isotope = unital_isotopes(table, 2, generator())[0]
    bases = random_isomorphisms(isotope, algebra, unit, 20, generator())
    g = bases[:, 1]
    isomorphic = transformed(torch.stack([g.mT, torch.linalg.inv(g), g.mT], dim=1), isotope.table.expand(20, 3, 3, 3))
    assert torch.allclose(transformed(bases, isomorphic), table.expand(20, 3, 3, 3))
    assert torch.allclose(g @ unit, isotope.unit.expand(20, 3))
    ours, theirs = (torch.einsum("kii->k", each) for each in (algebra, isotope.table))
    assert torch.allclose(theirs @ g, ours.expand(20, 3))
    traceless = torch.linalg.svd(ours[None])[2][1:]
    grams = traceless @ g.mT @ g @ traceless.mT
    assert torch.allclose(grams, grams[:, :1, :1] * torch.eye(2, dtype=torch.float64))
    assert set(torch.linalg.det(g).sign().tolist()) == {-1.0, 1.0}


def test_evidence_prefers_the_smaller_orbit():
    complex_, _, dual_ = orbits(2)
    assert evidence(dual_, 1e-3) > evidence(complex_, 0.0) > evidence(dual_, 0.05)
    assert evidence(dual_, 1e-3) > evidence(dual_, 1e-3, condition=300.0)
    far = Nearest(0.5, 1.0, orthogonal_bases(1, 4, generator())[0])
    shares, _, nothing = plausibilities(orbits(4), [far] * len(orbits(4)), [])
    assert nothing > 0.9
    assert abs(sum(shares) + nothing - 1) < 1e-9
    assert plausibilities((), [], []) == ([], [], 1.0)


def test_a_limit_that_is_a_little_farther_is_not_named():
    """High condition brings algebras near to their limits more often than chance: evidence alone would name it."""
    candidates = [orbit for orbit in orbits(3) if orbit.name in ("direct(3)", "real + dual")]
    bases = orthogonal_bases(1, 3, generator())[0]
    found = [Nearest(distance, 10.0, bases) for distance in (0.05, 0.06)]
    one, limit = (evidence(orbit, near.distance) for orbit, near in zip(candidates, found, strict=True))
    shares = plausibilities(tuple(candidates), found, []).orbits
    assert limit > one
    assert shares[0] > shares[1]
