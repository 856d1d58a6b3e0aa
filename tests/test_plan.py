import pytest
from hypothesis import given
from hypothesis import strategies as st

from nplex.ops import plan

WIDTHS = st.integers(8, 4096)


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
