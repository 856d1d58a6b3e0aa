"""Writing with a cache: the same as without one, and as a search through everything."""

import itertools

import pytest
import torch

from nplex import convert_, only
from nplex.convert import parse_rule
from nplex.lab.generation import beam, greedy, penalty
from nplex.lab.recipes.encoder_decoder import EncoderDecoder

BEGIN, END = 2, 3
RULES = ["dense", "2", "4:7"]


def model(rule="dense", words=11, scale=6.0):
    torch.manual_seed(0)
    made = EncoderDecoder(words, width=16, heads=2, feed_forward=24, layers=2, dropout=0.1, longest=40)
    with torch.no_grad():
        made.words.weight.mul_(scale)  # decided, rather than all words alike
    if rule != "dense":
        convert_(made, parse_rule(rule), where=only("encoder.*", "decoder.*"))
    return made.eval()


def source(batch=5, words=11):
    lengths = torch.randint(1, 7, (batch,))
    lengths[0] = 6
    return torch.where(torch.arange(6) < lengths[:, None], torch.randint(4, words, (batch, 6)), 0)


@pytest.mark.parametrize("rule", RULES)
def test_steps_are_the_whole_forward(rule):
    made, seen = model(rule), source()
    target = torch.randint(4, 11, (5, 7))
    state = made.start(seen)
    steps = torch.stack([made.step(target[:, place], state) for place in range(7)], 1)
    torch.testing.assert_close(steps, made.logits(made.states(seen, target)), atol=1e-4, rtol=1e-4)


def naive_greedy(made, row, longest):
    words = [BEGIN]
    while len(words) <= longest:
        word = made.logits(made.states(row[None], torch.tensor([words])))[0, -1].argmax().item()
        if word == END:
            break
        words.append(word)
    return words[1:]


@pytest.mark.parametrize("rule", RULES)
def test_greedy_takes_the_likeliest_of_whole_forwards(rule):
    made, seen = model(rule), source()
    expected = [naive_greedy(made, row[row != 0], 9) for row in seen]
    assert greedy(made, seen, longest=9, begin=BEGIN, end=END) == expected
    assert beam(made, seen, longest=9, begin=BEGIN, end=END, beams=1) == expected


def log_probability(made, row, words):
    whole = torch.tensor([[BEGIN, *words]])
    logits = made.logits(made.states(row[None], whole[:, :-1]))[0].log_softmax(-1)
    return logits.gather(1, whole[0, 1:, None]).sum().item()


@pytest.mark.parametrize("power", [0.0, 0.6, 1.0])
def test_a_beam_that_holds_everything_finds_the_best(power):
    """All texts of three words at most, over five words and the end, against a search that drops none of two."""
    made, longest = model(words=6, scale=2.0), 3
    words = [word for word in range(6) if word != END]
    texts = [text for size in range(longest + 1) for text in itertools.product(words, repeat=size)]
    for row in source(4, 6):
        row = row[row != 0]
        scores = {
            text: log_probability(made, row, text if len(text) == longest else (*text, END))
            / penalty(len(text) + 1, power)
            for text in texts
        }
        (found,) = beam(made, row[None], longest=longest, begin=BEGIN, end=END, beams=30, length_penalty=power)
        assert scores[tuple(found)] == pytest.approx(max(scores.values()), abs=1e-4)


def test_sentences_do_not_change_one_another():
    made, seen = model("4:7"), source(6)
    alone = [beam(made, row[row != 0][None], longest=8, begin=BEGIN, end=END)[0] for row in seen]
    assert beam(made, seen, longest=8, begin=BEGIN, end=END) == alone


def test_the_loss_does_not_see_padding():
    made, seen = model(), source(2)
    target = torch.tensor([[BEGIN, 5, END, 0, 0], [BEGIN, 6, 7, 8, END]])
    total, items = made(seen, target, 0.1)
    first = made(seen[:1, :6], target[:1, :3], 0.1)
    second = made(seen[1:][:, seen[1] != 0], target[1:], 0.1)
    assert (items, first[1], second[1]) == (6, 2, 4)
    torch.testing.assert_close(total, first[0] + second[0], atol=1e-4, rtol=1e-4)


def test_penalty_is_the_published_formula():
    assert penalty(1, 0.6) == 1.0
    assert penalty(7, 0.6) == pytest.approx(2**0.6)
    assert penalty(100, 0.0) == 1.0
