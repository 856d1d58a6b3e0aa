import random

import pytest
import torch

from nplex.lab.scores import bleu, paired, score_of, statistics, wilson
from nplex.lab.scores.bleu_score import counts, of_counts


def test_one_seed_is_wilsons_interval():
    assert wilson(["1" * 8 + "0" * 2]) == pytest.approx((0.4901, 0.9433), abs=1e-3)  # Wilson for 8 of 10


def test_the_same_answers_from_more_seeds_tell_nothing_new():
    assert wilson(["1101"] * 3) == pytest.approx(wilson(["1101"]))


def test_answers_that_differ_between_seeds_narrow_it():
    one, three = wilson(["110100"]), wilson(["110100", "101010", "011001"])
    assert three[1] - three[0] < one[1] - one[0]


def test_all_right_is_no_certainty():
    low, high = wilson(["1" * 50])
    assert 0.9 < low < 0.95
    assert high == 1.0


WORDS = ["the", "a", "cat", "dog", "sees", "small", "house", "of", "red", "in", "old", "man"]


def sentences(seed, count=40):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 14))) for _ in range(count)]


@pytest.mark.parametrize("lowercase", [False, True])
def test_the_counts_of_sentences_add_up_to_sacrebleus_score(lowercase):
    references = sentences(0)
    texts = [text.title() if number % 3 == 0 else text for number, text in enumerate(references)]
    texts = [
        text if number % 4 else other for number, (text, other) in enumerate(zip(texts, sentences(1), strict=True))
    ]
    sums = torch.tensor(counts(texts, references, lowercase=lowercase)).sum(0).double()
    assert of_counts(sums) == pytest.approx(bleu(texts, references, lowercase=lowercase, resamples=0).score)


def accuracy(sums):
    return 100 * float(sums[0] / sums[1])


def answers(right):
    return torch.stack([right.double(), torch.ones_like(right, dtype=torch.float64)], -1)


def test_a_model_differs_from_itself_by_nothing():
    right = answers(torch.rand(2, 200) < 0.7)
    found = paired(right, right, accuracy)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_the_interval_is_that_of_the_paired_differences():
    torch.manual_seed(0)
    base = torch.rand(1, 2000) < 0.7
    ours = base ^ (torch.rand(1, 2000) < 0.1)
    found = paired(answers(ours), answers(base), accuracy)
    differences = 100 * (ours.double() - base.double())[0]
    assert found.mean == pytest.approx(float(differences.mean()))
    half = 1.96 * float(differences.std()) / 2000**0.5
    assert found.low == pytest.approx(found.mean - half, abs=0.15)
    assert found.high == pytest.approx(found.mean + half, abs=0.15)
    assert found.p < 0.05 if abs(found.mean) > 1.3 * half else found.p > 0.001


def test_seeds_are_averaged():
    first, second = torch.tensor([[1.0, 1, 0, 0]]).bool(), torch.tensor([[1.0, 1, 1, 1]]).bool()
    found = paired(answers(torch.cat([first, second])), answers(first), accuracy, resamples=50)
    assert found.mean == pytest.approx(25.0)
    assert str(found).startswith("+25.00 (")


@pytest.mark.parametrize(
    ("kind", "answers", "score"), [("accuracy", [["1101"]], 75.0), ("loss", [["0.5", "1.0", "3.0"]], 1.5)]
)
def test_answers_add_up_to_their_score(kind, answers, score):
    assert score_of(kind)(statistics(kind, answers, [])[0].sum(0)) == pytest.approx(score)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="the same examples"):
        paired(torch.ones(1, 3, 2), torch.ones(1, 4, 2), accuracy)
