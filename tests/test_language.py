import gzip
import math
from dataclasses import replace
from itertools import chain, pairwise

import pytest
import torch

from nplex.lab import experiment
from nplex.lab.generation import beam, greedy
from nplex.lab.recipes.language_model import LanguageModel
from nplex.lab.recipes.language_modelling import language, pieces
from nplex.lab.scores import normal
from nplex.lab.train import Schedule

CPU = torch.device("cpu")


def write_parts(folder, text="the cat saw the dog\nthe dog saw the cat\n"):
    for part, times in {"train": 60, "dev": 4, "test": 4}.items():
        (folder / f"{part}.txt").write_text(text * times)


def tiny(rule="2", **changes):
    schedule = Schedule(epochs=12, batch_size=8, learning_rate=1e-2)
    return replace(
        language(rule, set=changes.pop("set", "")), width=16, feed_forward=32, heads=2, layers=1, dropout=0.0,
        length=16, schedule=schedule, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(("unit", "rule"), [("byte", "dense"), ("byte", "2:3"), ("word", "4")])
def test_a_run_learns_a_text_that_repeats(tmp_path, unit, rule):
    write_parts(tmp_path)
    recipe = tiny(rule, unit=unit)
    data = recipe.load(tmp_path)
    result = experiment.run(recipe, data, 0, tmp_path / "run")
    low, high = result["interval"]
    loss = result["scores"]["loss"]
    assert result["kind"] == "loss"
    assert low < loss < high
    assert loss < 0.6 * recipe.baseline(data)[1]["loss"]
    assert result["history"][0]["nats"] > result["history"][-1]["nats"]
    assert result["examples"] == len(result["answers"]) == math.ceil((len(data.test) - 1) / recipe.length)
    if unit == "byte":
        assert result["scores"]["bits"] == pytest.approx(loss / math.log(2))
    else:
        assert result["scores"]["perplexity"] == pytest.approx(math.exp(loss))


def model(longest=24):
    torch.manual_seed(0)
    return LanguageModel(12, width=16, heads=2, feed_forward=32, layers=2, dropout=0.0, longest=longest).eval()


@pytest.mark.parametrize("prompt", [0, 1, 5])
def test_a_step_is_the_same_as_reading_all(prompt):
    reader, text = model(), torch.randint(12, (3, 12))
    with torch.no_grad():
        state = reader.start(text[:, :prompt])
        logits = torch.stack([reader.step(text[:, place], state) for place in range(prompt, 11)], 1)
        losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), text[:, prompt + 1 :], reduction="none")
        torch.testing.assert_close(losses, reader(text)[:, prompt:])


def test_each_place_sees_only_those_before_it():
    reader, text = model(), torch.randint(12, (1, 10))
    changed = text.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 12
    before, after = reader(text)[0], reader(changed)[0]
    assert before[:6].equal(after[:6])
    assert (before[6:] != after[6:]).all()


def test_greedy_and_one_beam_write_the_likeliest_after_a_prompt():
    reader, prompt = model(), torch.randint(12, (4, 3))
    options = {"longest": 6, "begin": 1, "end": 99}
    written = greedy(reader, prompt, **options)
    text = torch.cat([prompt, torch.ones(4, 1, dtype=torch.long)], 1)
    with torch.no_grad():
        for _ in range(6):
            following = torch.stack(
                [reader(torch.cat([text, torch.full((4, 1), word)], 1))[:, -1] for word in range(12)], 1
            )
            text = torch.cat([text, following.argmin(1, keepdim=True)], 1)
    assert torch.tensor(written).equal(text[:, 4:])
    assert beam(reader, prompt, beams=1, length_penalty=0.0, **options) == written


def test_a_text_longer_than_the_model_is_refused():
    reader = model(longest=4)
    with pytest.raises(ValueError, match="4 places at most, got 5"):
        reader.start(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="4 places at most, got 5"):
        reader.step(torch.zeros(1, dtype=torch.long), reader.start(torch.zeros(1, 4, dtype=torch.long)))


@pytest.mark.parametrize("length", [33, 34, 48])
def test_pieces_hold_every_place_but_the_first_once(length):
    losses = pieces(model(), torch.arange(length) % 12, 16, CPU)
    assert [len(loss) for loss in losses[:2]] == [16, 16]
    assert sum(map(len, losses)) == length - 1


def test_batches_hold_the_text_once_from_a_random_place(tmp_path):
    write_parts(tmp_path)
    recipe = tiny()
    task = recipe.task(recipe.load(tmp_path))
    first, second = (
        sorted(chain.from_iterable(task.batches(torch.Generator().manual_seed(seed)))) for seed in (0, 1)
    )
    assert {b - a for a, b in pairwise(first)} == {16}
    assert first[0] < 16
    assert first != second


def test_one_file_is_cut_by_its_lines(tmp_path):
    lines = [f"line {number:03}" for number in range(200)]
    with gzip.open(tmp_path / "tinyshakespeare.txt.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    data = tiny(set="tinyshakespeare").load(tmp_path)
    texts = [bytes(part.tolist()).decode() for part in (data.train, data.dev, data.test)]
    assert "".join(texts).splitlines() == lines
    assert [len(text.splitlines()) for text in texts] == [180, 10, 10]


def test_the_built_in_text_is_the_world_english_bible():
    data = language("4").load(None)
    assert bytes(data.train[:11].tolist()).decode() == "The heavens"
    assert len(data.train) > 3_500_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "dev.txt").write_text("short"), "dev part has 6 bytes, expected more than 16"),
        (lambda folder: (folder / "test.txt").unlink(), "has no test.txt or test.txt.gz"),
        (lambda folder: (folder / "train.txt").write_bytes(b"ok\n\xff\n"), "line 2: expected UTF-8"),
    ],
)
def test_bad_text_is_told(tmp_path, make, message):
    write_parts(tmp_path)
    make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        tiny().load(tmp_path)


def test_the_interval_of_a_mean_has_its_width():
    torch.manual_seed(0)
    inside = 0
    for _ in range(400):
        low, high = normal(torch.randn(60).tolist())
        inside += low < 0 < high
    assert 0.92 < inside / 400 < 0.98
    assert normal([2.0]) == (2.0, 2.0)
