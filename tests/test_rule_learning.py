"""Learning known products from examples: tables, algorithms, what cannot be learned, and nplex rule learn."""

import json
import math
import re
from fractions import Fraction

import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from typer.testing import CliRunner

from nplex.algebra import (
    BilinearAlgorithm,
    ExactAlgorithm,
    complex_,
    formulas,
    known_algorithm,
    named,
    quaternion,
)
from nplex.cli import app, spread
from nplex.files import read_tensors, write_tensors
from nplex.lab.products import RuleLearning, learn, product_named
from nplex.lab.products.known import ROTATIONS, examples_of
from nplex.lab.products.result import explained

PRODUCTS = [
    "real", "complex", "quaternion", "octonion", "clifford(2,0)", "cyclic(5)", "matrices(2)", "sedenion", "random(4)",
    *ROTATIONS,
]  # fmt: skip
ALGORITHMS = {"complex": 3, "matrices(2)": 7, "quaternion": 8}


def call(*arguments):
    return CliRunner().invoke(app, spread(["rule", "learn", *map(str, arguments)]), prog_name="nplex")


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_table_is_learned(name):
    one = learn(RuleLearning(name))
    assert one.error <= 1e-5
    assert one.verdict == "learned"
    if one.determined == one.true.numel():
        torch.testing.assert_close(one.table, product_named(name).algebra.table, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", PRODUCTS)
def test_noise_costs_no_more_than_it_must(name):
    one = learn(RuleLearning(name, noise=0.01))
    assert 0 < one.error <= 1.01 * one.optimum
    assert one.verdict == "learned"


@pytest.mark.parametrize(("name", "rank"), ALGORITHMS.items())
def test_an_algorithm_is_found_and_is_exact(name, rank):
    one = learn(RuleLearning(name, rank=rank, noise=0.01), seed=2)
    assert one.verdict == f"learned, and exact in small numbers: {rank} products, checked in fractions"
    assert one.exact.wrong_entries(named(name).entries) == 0
    assert one.exact.factors().error(named(name).table) == 0
    check_formulas(formulas(one.exact), named(name))


def check_formulas(text, algebra):
    """What stands in the formulas, computed by Python in fractions, is the product."""
    x, y = (torch.randint(-9, 10, (algebra.n,)).double() for _ in range(2))
    values = {f"{letter}{k}": int(v) for letter, vector in (("x", x), ("y", y)) for k, v in enumerate(vector)}
    for line in text.splitlines():
        name, _, right = line.partition(" = ")
        right = re.sub(r"(\d+)/(\d+) ", r"Fraction(\1, \2) * ", right)
        right = re.sub(r"(?<![\w.])(\d+) (?=[mxy])", r"\1 * ", right)
        right = re.sub(r"(\)|[xy]\d+) (?=\(|[xy]\d)", r"\1 * ", right)
        values[name] = eval(right, {"Fraction": Fraction}, values)
    assert [values[f"z{i}"] for i in range(algebra.n)] == algebra.multiply(x, y).tolist()


@pytest.mark.parametrize(("name", "rank"), [("complex", 2), ("quaternion", 7), ("matrices(2)", 6)])
def test_fewer_products_than_the_rank_fail(name, rank):
    one = learn(RuleLearning(name, rank=rank))
    assert one.exact is None
    assert f"no algorithm with {rank} products" in one.verdict


def test_a_rank_that_only_noise_allows_is_not_learned():
    assert "no algorithm with 2 products" in learn(RuleLearning("quaternion", rank=2, noise=10.0)).verdict


def test_what_is_rounded_is_the_learned_table(tmp_path):
    """So an exact algorithm may be one of another table, which the noise hides, and the verdict says so."""
    (tmp_path / "own.json").write_text(json.dumps((1.001 * complex_.table).tolist()))
    one = learn(RuleLearning(str(tmp_path / "own.json"), rank=3, noise=0.05))
    assert one.exact.wrong_entries(complex_.entries) == 0
    assert "3 products of another table that fits the examples as well, checked in fractions" in one.verdict


def test_a_rule_that_is_too_small_comes_to_the_nearest_one():
    """Unit quaternions u, v, w have `<u v, w>` up to 1, so the nearest table with n = 1 keeps 1 of 16."""
    one = learn(RuleLearning("quaternion", 1))
    assert math.sqrt(15 / 16) <= one.error <= 1.01 * math.sqrt(15 / 16)
    assert one.verdict == "n = 1 is too small for quaternion, which has n = 4"


def test_a_rule_that_is_too_large_leaves_the_rest_at_zero():
    one = learn(RuleLearning("complex", 4))
    torch.testing.assert_close(one.table[:2, :2, :2], complex_.table, atol=1e-6, rtol=0)
    assert float((one.table - one.true).norm()) < 1e-6
    assert (one.determined, one.table.numel()) == (16, 64)


def test_few_examples_determine_a_part():
    """The learned table is then the true one's projection: at a right angle to what is missing."""
    one = learn(RuleLearning("octonion", examples=20))
    assert one.determined == 20 * 8
    assert one.error < 1e-5
    missing = one.true - one.table
    assert float((missing * one.table).sum().abs()) < 1e-4 * float(missing.norm() * one.table.norm())
    assert "the examples determine 160 of the 512 numbers" in explained([one])


def test_pure_quaternions_leave_faces_open():
    one = learn(RuleLearning("rotation-pure"))
    assert one.determined == 36
    torch.testing.assert_close(one.table[1:, :, 1:], quaternion.table[1:, :, 1:], atol=1e-5, rtol=0)
    assert float(one.table[0].abs().max()) < 1e-4


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_keep_lengths(name):
    product = product_named(name)
    x, y = product.draw(40, torch.Generator().manual_seed(1))
    z = product.algebra.multiply(x, y)
    if name == "rotation":
        p, rotated = y[0::2], z[1::2]
        assert rotated[:, 0].abs().max() < 1.0  # half are of other pairs
        torch.testing.assert_close(z[0::2].norm(dim=1), p.norm(dim=1))
    elif name == "rotation-pure":
        torch.testing.assert_close(z[:, 1:], torch.linalg.cross(x[:, 1:], y[:, 1:]))
    else:
        width = 3 if name == "rotation-axis" else 9
        torch.testing.assert_close(z.reshape(40, width).norm(dim=1), y.norm(dim=1))


def test_the_same_seed_gives_the_same_table_and_touches_nothing():
    before = torch.get_rng_state()
    one, again, other = (learn(RuleLearning("complex", noise=0.01), seed) for seed in (3, 3, 4))
    assert torch.equal(one.table, again.table)
    assert not torch.equal(one.table, other.table)
    assert torch.equal(torch.get_rng_state(), before)


def test_rotations_turn_the_right_way():
    """A quarter turn about (1, 2, 2) / 3 takes v to u (u v) + u x v."""
    u, v = torch.tensor([1.0, 2.0, 2.0]).double() / 3, torch.tensor([3.0, -1.0, 2.0]).double()
    turned = product_named("rotation-axis").algebra.multiply(torch.tensor([0.0, 1.0, 1.0]).double(), v)
    torch.testing.assert_close(turned, u * (u @ v) + torch.linalg.cross(u, v))


def test_noise_is_a_share_of_the_results():
    clean, noisy = (
        examples_of(product_named("octonion"), 4000, noise, torch.Generator().manual_seed(0))[1]
        for noise in (0.0, 0.2)
    )
    assert 0.195 < float((noisy - clean).norm() / clean.norm()) < 0.205


def test_an_algorithm_is_checked_entry_by_entry():
    exact = ExactAlgorithm.from_factors(known_algorithm(quaternion))
    assert exact.wrong_entries(quaternion.entries) == 0
    assert exact.in_whole_numbers().wrong_entries(quaternion.entries) == 0
    changed = (exact.decode[0][0] + Fraction(1, 10**30), *exact.decode[0][1:])
    other = ExactAlgorithm(exact.encode_component, exact.encode_input, (changed, *exact.decode[1:]))
    assert other.wrong_entries(quaternion.entries) > 0
    with pytest.raises(ValueError, match="n = 4 for this algorithm, got one of n = 2"):
        exact.wrong_entries(complex_.entries)


def test_wide_tables_are_not_printed():
    assert "too wide for text" in explained([learn(RuleLearning("random(9)", examples=20))])


def test_command_writes_all_files(tmp_path):
    out = tmp_path / "out"
    result = call("complex", "--rank", 3, "--seed", 1, 0, "--out", out)
    assert result.exit_code == 0, result.output
    assert "products: 3, additions: 5; all 8 entries checked in fractions" in result.stdout
    assert {path.name for path in out.iterdir()} == {
        "settings.json", "result.json", "result.md", "rule.safetensors", "curve.png",
    }  # fmt: skip
    written = json.loads((out / "result.json").read_text())
    assert [one["seed"] for one in written["seeds"]] == [0, 1]
    first = written["seeds"][0]
    assert first["curve"][-1]["error"] < 1e-5
    columns = {
        name: tuple(tuple(map(Fraction, column)) for column in first["exact"][name])
        for name in BilinearAlgorithm._fields
    }
    assert ExactAlgorithm(**columns).wrong_entries(complex_.entries) == 0
    check_formulas("\n".join(first["exact"]["formulas"]), complex_)
    tables, _ = read_tensors(out / "rule.safetensors")
    assert {name.partition("/")[0] for name in tables} == {"0", "1"}
    refused(call("complex", "--out", out), out, "exists", "--force")
    assert call("complex", "--out", out, "--force").exit_code == 0
    (out / "x.txt").write_text("x")
    refused(call("complex", "--out", out, "--force"), "x.txt")


def test_what_was_written_is_read(tmp_path):
    assert call("complex", "--out", tmp_path / "out").exit_code == 0
    product = product_named(str(tmp_path / "out" / "rule.safetensors"))
    assert product.algebra.name.startswith("rule.safetensors, seed 0, step")
    torch.testing.assert_close(product.algebra.table, complex_.table, atol=1e-5, rtol=0)
    shown = CliRunner().invoke(app, ["rule", "show", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    assert "seed 0, step 0: n = 2" in shown.stdout
    refused(
        CliRunner().invoke(app, ["report", str(tmp_path / "out")]), "is not a folder of nplex run or nplex compare"
    )


def test_command_learns_a_table_of_a_file(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"table": complex_.table.tolist()}))
    result = call(tmp_path / "own.json", "--noise", 0.01, "--examples", 50)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("flat.json", "[[1, 2], [3, 4]]", "table must be 2 x 2 x 2"),
        ("text.json", "hello", "expected JSON"),
        ("zero.json", "[[[0]]]", "the largest number of a table must be from 1e-06 to 1e+06, got 0"),
        ("huge.json", "[[[1e308]]]", "the largest number of a table must be"),
        ("bytes.safetensors", "xx", "is damaged or not a safetensors file"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_files_that_hold_no_table(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    refused(call(tmp_path / name), name, said)


def test_files_of_others(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "other.safetensors")
    refused(call(tmp_path / "other.safetensors"), "holds no rule")
    write_tensors(tmp_path / "ours.safetensors", {"a": torch.ones(2)})
    refused(call(tmp_path / "ours.safetensors"), "holds no rule")
    refused(call(tmp_path / "none.json"), "no such file", "none.json")
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "x.txt").write_text("x")
    refused(call("complex", "--out", tmp_path / "alien", "--force"), "alien")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quaternio"], "no algebra is called 'quaternio'"),
        (["random(99)"], "from 1 to 16"),
        (["matrices(6)"], "the product's n must be from 1 to 32 here, got 36"),
        (["quaternion", "--n", 0], "n must be from 1 to 32 here, got 0"),
        (["quaternion", "--n", 99], "n must be from 1 to 32 here, got 99"),
        (["quaternion", "--rank", 17], "rank must be from 1 to 16 here, got 17"),
        (["quaternion", "--rank", 7, "--n", 3], "leave out one of the two"),
        (["quaternion", "--examples", 0], "examples must be from 1 to"),
        (["quaternion", "--examples", 10**9], "examples must be from 1 to 6,250,000 here"),
        (["quaternion", "--noise", "nan"], "noise must be a share"),
        (["quaternion", "--seed", -1], "a seed is a number from 0"),
        (["quaternion", "--force"], "give --out DIR too"),
    ],
)
def test_wrong_options(arguments, said):
    refused(call(*arguments), said)
