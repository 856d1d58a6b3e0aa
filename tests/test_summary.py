import pytest

from nplex.summary import interval


def test_one_seed_is_wilsons_interval():
    assert interval(["1" * 8 + "0" * 2]) == pytest.approx((0.4901, 0.9433), abs=1e-3)  # Wilson for 8 of 10


def test_the_same_answers_from_more_seeds_tell_nothing_new():
    assert interval(["1101"] * 3) == pytest.approx(interval(["1101"]))


def test_answers_that_differ_between_seeds_narrow_it():
    one, three = interval(["110100"]), interval(["110100", "101010", "011001"])
    assert three[1] - three[0] < one[1] - one[0]


def test_all_right_is_no_certainty():
    low, high = interval(["1" * 50])
    assert 0.9 < low < 0.95
    assert high == 1.0
