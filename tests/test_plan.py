import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nplex.ops.plan as plan_module
from nplex import nn, ops
from nplex.algebra import quaternion
from nplex.nn import LearnedRule
from nplex.ops import calibrate, cards, fused, machine
from nplex.ops.dense import linear_cost

WIDTHS = st.integers(8, 4096)
FULL_OR_RANK = st.sampled_from([None, 4, 8, 24])
FAST = dataclasses.replace(machine.DEFAULT, flops_per_second=1e15)


def plan(*widths, **rest):
    """On the default machine, whatever this one has measured."""
    return ops.plan_for(*widths, **{"machine": machine.DEFAULT} | rest)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of its own, not read yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    machine._known.cache_clear()
    yield tmp_path / "nplex" / "machine.json"
    machine._known.cache_clear()


@given(WIDTHS, WIDTHS, st.integers(0, 9000), st.sampled_from([1, 2, 4, 8]), st.sampled_from([None, 4, 8, 24]))
def test_a_plan_takes_the_lowest_estimate(in_features, out_features, tokens, n, rank):
    made = plan(in_features, out_features, tokens=tokens, n=n, rank=rank)
    assert {cost.method: cost.seconds for cost in made.costs}[made.method] == min(c.seconds for c in made.costs)


def test_bilinear_share_of_dense_arithmetic_tends_to_rank_over_n_squared():
    made = plan(4096, 4096, tokens=100_000, n=4, rank=7)
    flops = {cost.method: cost.flops for cost in made.costs}
    assert flops["bilinear"] / (2 * 100_000 * 4096**2) == pytest.approx(7 / 16, rel=0.02)


def test_flops_count_both_contractions():
    made = plan(8, 12, tokens=5, n=4)
    flops = {cost.method: cost.flops for cost in made.costs}
    assert flops["components_first"] == 2 * 5 * (8 * 12 + 4 * 4 * 4 * 3)
    assert flops["rule_first"] == 2 * 5 * (8 * 12 + 4 * 4 * 4 * 2)
    assert flops["dense"] == 2 * 5 * 8 * 12 + 2 * 4 * 8 * 12


def test_one_token_is_bound_by_bytes():
    assert plan(4096, 4096, tokens=1, n=8).method in {"components_first", "rule_first"}


def test_many_tokens_are_bound_by_arithmetic():
    assert plan(2048, 2048, tokens=1024, n=4, rank=7).method == "bilinear"
    assert plan(2048, 2048, tokens=1024, n=4).method == "dense"


def test_bytes_follow_the_type():
    wide, narrow = (plan(512, 512, tokens=64, n=4, element_size=size) for size in (4, 2))
    assert [c.bytes for c in wide.costs] == [2 * c.bytes for c in narrow.costs]


def test_a_plan_without_factors_has_no_bilinear_method():
    assert "bilinear" not in {cost.method for cost in plan(64, 64, tokens=9, n=4).costs}


def test_a_plan_prints_every_method_and_the_choice():
    text = str(plan(512, 2048, tokens=1024, n=4, rank=7))
    assert "estimates for the default machine" in text
    assert all(word in text for word in ("dense", "components_first", "rule_first", "torch's Linear"))
    assert [line.split()[0] for line in text.splitlines() if "<- chosen" in line] == ["bilinear"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"in_features": 0}, "in_features must be 1 or more, got 0"),
        ({"n": -1}, "n must be 1 or more, got -1"),
        ({"rank": 0}, "rank must be 1 or more, got 0"),
        ({"tokens": -1}, "tokens must be 0 or more, got -1"),
        ({"n": 16}, "n = 16 is larger than in_features = 8"),
    ],
)
def test_impossible_sizes_are_named(sizes, message):
    arguments = {"in_features": 8, "out_features": 8, "tokens": 1, "n": 4} | sizes
    with pytest.raises(ValueError, match=message):
        plan(**arguments)


@given(
    WIDTHS, WIDTHS, st.integers(0, 9000), st.sampled_from([1, 2, 4, 8]), FULL_OR_RANK, st.booleans(), st.booleans()
)
def test_estimates_are_positive_and_grow(in_features, out_features, tokens, n, rank, training, prepared):
    sizes = {"n": n, "rank": rank, "training": training, "prepared": prepared}
    few, many = (plan(in_features, out_features, tokens=t, **sizes) for t in (tokens, 4 * tokens + 512))
    for less, more in zip(few.costs, many.costs, strict=True):
        assert 0 < less.seconds < more.seconds < math.inf
        assert 0 <= less.flops < more.flops
        assert 0 <= less.bytes < more.bytes


@pytest.mark.parametrize("rank", [None, 4, 7])
@pytest.mark.parametrize("tokens", [0, 1, 7, 1024])
def test_gradients_cost_more_and_what_is_at_hand_less(rank, tokens):
    plain, training, prepared = (
        {cost.method: cost for cost in plan(256, 512, tokens=tokens, n=4, rank=rank, **mode).costs}
        for mode in ({}, {"training": True}, {"prepared": True})
    )
    for method, cost in plain.items():
        assert cost.seconds < training[method].seconds
        assert cost.flops >= prepared[method].flops
        if tokens > 16:  # few tokens find what is kept outside the cache
            assert cost.seconds >= prepared[method].seconds
    assert prepared["dense"].seconds < plain["dense"].seconds


def test_a_prepared_dense_layer_is_torchs():
    made = plan(512, 256, tokens=9, n=4, rank=7, prepared=True)
    assert dataclasses.replace(made.costs[0], method="") == dataclasses.replace(made.linear, method="")


@pytest.mark.parametrize("n", [2, 4, 8])
def test_packed_components_are_best_for_one_token(n):
    assert plan(4096, 4096, tokens=1, n=n, rank=n, prepared=True).method == "rule_first"


def test_training_counts_three_block_products():
    flops = {
        training: {c.method: c.flops for c in plan(4096, 4096, tokens=10**6, n=4, rank=7, training=training).costs}
        for training in (False, True)
    }
    for method in ("dense", "bilinear"):
        assert flops[True][method] / flops[False][method] == pytest.approx(3, rel=0.02)


def test_a_plan_says_what_it_counts():
    text = str(plan(64, 64, tokens=1, n=4, training=True, prepared=True, machine=FAST))
    assert "1 token, 4 bytes a number, training step, prepared" in text
    assert "estimates for the machine measured" in text


def test_the_door_counts_gradients_where_there_will_be_some(monkeypatch):
    asked, costs = [], plan_module._costs_before
    monkeypatch.setattr(plan_module, "_costs_before", lambda methods, r: asked.append(r) or costs(methods, r))
    x, layer = torch.ones(3, 8), nn.Linear(8, 8, rule=LearnedRule(4, rank=7))
    fixed = nn.Linear(8, 8, rule=quaternion)
    layer(x), fixed(x)
    with torch.no_grad():
        layer(x)
    fixed.requires_grad_(False)(x), fixed(x.requires_grad_())
    with torch.no_grad(), nn.cached(layer):
        layer(x)
    assert [request.training for request in asked] == [True, True, False, False, True, False]
    assert [request.prepared for request in asked] == [False, False, False, False, False, True]


def test_the_machine_file_comes_back(cache):
    assert machine.cache_file() == cache
    assert machine.load(cache) == {}
    machine.save(FAST, cache)
    slow = dataclasses.replace(FAST, flops_per_second=1.0)
    machine.save(slow, cache, device="cuda")
    assert machine.load(cache) == {("cpu", torch.get_num_threads()): FAST, ("cuda", 1): slow}
    assert (machine.current(), machine.current("cuda"), machine.current("mps")) == (FAST, slow, machine.DEFAULT)
    assert ops.plan_for(8, 8, tokens=1, n=2).request.machine == FAST
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_the_machine_file_is_read_once_and_not_at_import(cache):
    machine.save(FAST, cache)
    code = (
        "import nplex, pathlib\n"
        "from nplex.ops import machine\n"
        "assert machine._known.cache_info().misses == 0\n"
        "found = machine.current()\n"
        "machine.cache_file().unlink()\n"
        "assert machine.current() == found != machine.DEFAULT\n"
    )
    environment = {"XDG_CACHE_HOME": str(cache.parent.parent), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"cpu": {}}', '{"cpu 1": {"flops_per_second": 1}}', '{"cpu 1": 3}', "\udcff"],
)
def test_a_damaged_machine_file_is_told_and_ignored(cache, text):
    cache.parent.mkdir()
    cache.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match=r"machine\.json holds no measured machines.*nplex measure.*default"):
        assert machine.current() == machine.DEFAULT
    assert machine.current() == machine.DEFAULT  # told once
    machine.save(FAST, cache)
    assert machine.load(cache) == {("cpu", torch.get_num_threads()): FAST}


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_impossible_constants_are_refused(cache, value):
    with pytest.raises(ValueError, match="cache_bytes must be a positive number"):
        dataclasses.replace(FAST, cache_bytes=value)
    cache.parent.mkdir()
    entry = dataclasses.asdict(FAST) | {"cache_bytes": value}
    cache.write_text(json.dumps({"cpu 1": entry}))
    with pytest.raises(ValueError, match="cache_bytes must be a positive number"):
        machine.load(cache)


def test_without_a_cache_folder_it_lies_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert machine.cache_file() == tmp_path / ".cache" / "nplex" / "machine.json"


def test_measuring_gives_a_machine_that_computes():
    found = ops.measure()
    assert 1e8 < found.flops_per_second < 1e14
    assert 1e-8 < found.seconds_per_call < 1e-3
    assert str(found).count("\n") == 4


def test_a_device_that_is_not_there_cannot_be_measured():
    with pytest.raises(ValueError, match="device 'fly' cannot be measured"):
        ops.measure("fly")


def test_a_gpu_plans_by_its_type_and_card(monkeypatch):
    monkeypatch.setattr(fused, "works", lambda: False)

    def method(card, element_size):
        sizes = {"tokens": 16384, "n": 4, "rank": 4, "element_size": element_size, "training": True}
        return plan(4096, 4096, **sizes, machine=machine.ACCELERATORS[card]).method

    assert method("H100", 2) == "dense"
    assert method("H100", 4) == "bilinear"  # arithmetic takes 16 times as long, traffic twice
    assert method("H200", 2) == "bilinear"  # the same arithmetic, traffic two thirds


def test_a_compiled_gpu_layer_needs_no_copies_and_no_python(monkeypatch):
    monkeypatch.setattr(fused, "works", lambda: False)
    request = plan(4096, 4096, tokens=16384, n=4, rank=7, element_size=2, training=True,
                   machine=machine.ACCELERATORS["H100"]).request  # fmt: skip
    eager, compiled = (
        {m.name: m.cost(request._replace(compiled=c)).seconds for m in ops.METHODS.values() if m.cost}
        for c in (False, True)
    )
    dense = linear_cost(request, 4096, 4096).seconds
    assert eager["dense"] < 1.1 * dense
    assert eager["bilinear"] > 1.4 * dense
    assert compiled["bilinear"] < dense


@pytest.fixture
def kernels(monkeypatch):
    """Plans as where Triton's kernels run."""
    monkeypatch.setattr(fused, "works", lambda: True)


def on_h100(width, n, rank=None, **how):
    how = {"tokens": 16384, "element_size": 2, "training": True, "machine": machine.ACCELERATORS["H100"]} | how
    made = plan(width, width, n=n, rank=rank, **how)
    return made, {cost.method: cost.seconds / made.linear.seconds for cost in made.costs}


@pytest.mark.parametrize(("n", "rank"), [(4, None), (8, None), (4, 7), (4, 4), (8, 24), (8, 8)])
def test_small_layers_with_kernels_take_about_the_time_of_torchs(n, rank, kernels):
    for width in (1024, 2048, 4096, 8192):
        made, shares = on_h100(width, n, rank)
        assert shares[made.method] < 1.1
        assert shares[made.method] < 1.01 * shares["dense"]
        assert shares["dense"] < (1.1 if width == 1024 else 1.04)


@pytest.mark.parametrize(
    "how",
    [
        {"width": 1000}, {"width": 2048, "n": 64}, {"width": 2048, "rank": 33}, {"width": 2048, "element_size": 8},
        {"width": 2048, "works": False},
    ],
    ids=str,
)  # fmt: skip
def test_the_plan_costs_the_formula_where_no_kernel_runs(how, monkeypatch):
    asked = {"n": 4, "rank": 7} | how
    works = asked.pop("works", True)
    costs = []
    for runs in (works, False):
        monkeypatch.setattr(fused, "works", lambda runs=runs: runs)
        costs.append(on_h100(**asked)[1])
    assert costs[0] == costs[1]


def test_few_tokens_are_decoded_at_once_where_python_starts_nothing(kernels):
    h100 = machine.ACCELERATORS["H100"]
    captured = dataclasses.replace(h100, seconds_per_call=1e-9)
    few = {"tokens": 1, "training": False, "prepared": True}
    assert on_h100(4096, 4, **few)[0].method == "dense"
    made, shares = on_h100(4096, 4, machine=captured, **few)
    assert made.method == "components_first"
    assert shares["components_first"] < 0.55
    assert on_h100(4096, 8, machine=captured, **few)[1]["components_first"] < 0.45


def test_the_predicted_table_of_the_docs_is_the_plans(kernels):
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text("utf-8")
    for n, rank in ((4, 7), (4, 4), (8, 24), (8, 8)):
        cells = []
        for d in (1024, 2048, 4096, 8192):
            made, share = on_h100(d, n, rank)
            request = made.request._replace(compiled=True)
            dense = linear_cost(request, d, d).total("").seconds
            compiled = ops.METHODS["bilinear"].cost(request).total("").seconds / dense
            cells.append(f"{share['dense']:.2f}, {share['bilinear']:.2f}, {compiled:.2f}")
        assert f"| n = {n}, rank {rank} | {' | '.join(cells)} |" in page


def test_measuring_an_accelerator_gives_what_a_plan_needs(cache):
    found = calibrate.measure_accelerator("cpu", 64, 2**16)
    assert isinstance(found, machine.Accelerator)
    machine.save(found, cache, device="cuda")
    assert machine.current("cuda") == found
    assert "TB/s" in str(found)
    assert "the machine measured" in str(plan(64, 64, tokens=9, n=4, machine=found))


def test_an_accelerator_is_not_measured_as_a_cpu(monkeypatch):
    card = machine.ACCELERATORS["T4"]
    monkeypatch.setattr(calibrate, "measure_accelerator", lambda device: card if device == "cuda" else None)
    monkeypatch.setattr(torch, "ones", lambda *size, device: torch.zeros(*size))
    assert ops.measure("cuda") is card


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), "H100"),
        ("NVIDIA H200", (9, 0), "H200"),
        ("NVIDIA GH200 480GB", (9, 0), "H200"),
        ("Tesla T4", (7, 5), "T4"),
        ("NVIDIA GeForce GTX 1080", (6, 1), "T4"),
        ("NVIDIA A10G", (8, 6), "RTX 3090"),
        ("NVIDIA GeForce RTX 5090", (12, 0), "RTX 4090"),
        ("NVIDIA B200", (10, 0), "H200"),
    ],
)
def test_the_class_of_a_card(name, capability, expected):
    assert cards.class_of(name, capability) == expected
