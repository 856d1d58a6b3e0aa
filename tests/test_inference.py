import gzip
import random
from itertools import chain

import pytest
import torch

from nplex.files import read_json
from nplex.lab import experiment
from nplex.lab.recipes.classifiers import PairClassifier
from nplex.lab.recipes.natural_language_inference import LABELS, inference
from nplex.lab.recipes.tasks import recipe_of

SUBJECTS, VERBS = ("man", "woman", "child", "dog"), ("runs", "sleeps", "sings")


def row(rng):
    """The label is told by one word of the second sentence, given the first."""
    subject, verb = rng.choice(SUBJECTS), rng.choice(VERBS)
    label = rng.choice(LABELS)
    second = {"entailment": f"Somebody {verb}.", "neutral": f"A tall {subject}!", "contradiction": "Nobody is here."}
    return f"{label}\tA {subject} {verb}, again.\t{second[label]}\tmade\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("pairs"), random.Random(0)
    for split, count in (("train", 192), ("dev", 24), ("test", 30)):
        (folder / f"{split}.tsv").write_text("".join(row(rng) for _ in range(count)))
    return folder


def test_a_run_learns_what_is_there(data, tmp_path):
    recipe = inference("4:4")
    loaded = recipe.load(data)
    result = experiment.run(recipe, loaded, 0, tmp_path / "run")
    assert result["scores"]["accuracy"] > 90
    assert result["scores"]["made"] == result["scores"]["accuracy"]
    assert result["layer_parameters"] == 2 * (4 * 160 * 160 // 4 + 4 * 160) + result_rules(recipe, loaded)
    written = read_json(tmp_path / "run" / "result.json")
    assert written == result | {"checksum": written["checksum"]}
    assert not list((tmp_path / "run").glob("best*"))


def result_rules(recipe, data):
    model = recipe.build(data)
    return sum(p.numel() for name, p in model.named_parameters() if ".rule" in name)


def test_padding_changes_no_answer():
    torch.manual_seed(0)
    model = PairClassifier(20, 3, embedding=8, width=8, dropout=0.5).eval()
    first, second = torch.randint(1, 20, (2, 5)), torch.randint(1, 20, (2, 3))
    padded = torch.nn.functional.pad(first, (0, 4)), torch.nn.functional.pad(second, (0, 1))
    torch.testing.assert_close(model(*padded), model(first, second))


def test_public_files_are_read_as_they_are_published(tmp_path):
    def write(name, text):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))

    write("cad_snli_train.tsv.gz", "sentence1\tsentence2\tgold_label\nA man, running.\tHe runs!\tneutral\n" * 1)
    write("snli_dev.tsv.gz", "two women\tthe sisters\t1\ntwo women\ttwo people\t0\n")
    write("snli_test.tsv.gz", "two women\tthe men\t2\n")
    data = recipe_of("inference", "5", set="snli").load(tmp_path)
    assert [split.labels.tolist() for split in (data.train, data.dev, data.test)] == [[1], [1, 0], [2]]
    assert [len(line) for line in chain(*data.train.sides)] == [3, 2]  # no signs: dev has none
    assert [file.name for file in data.files] == ["cad_snli_train.tsv.gz", "snli_dev.tsv.gz", "snli_test.tsv.gz"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("neutral\tonly one", "line 2: expected 3 or 4 columns, got 2"),
        ("maybe\ta\tb", "line 2: label must be entailment or neutral or contradiction, got 'maybe'"),
        ("neutral\t \tb", "line 2: a text is empty"),
    ],
)
def test_a_malformed_line_is_named(data, tmp_path, line, message):
    for split in ("train", "dev", "test"):
        lines = (data / f"{split}.tsv").read_text().splitlines()
        (tmp_path / f"{split}.tsv").write_text("\n".join([lines[0], line, *lines[2:]]))
    with pytest.raises(ValueError, match=message):
        inference().load(tmp_path)


def test_what_cannot_be_had_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match="inference has no built-in data: nplex fetch snli gets some",
    ):
        inference().load(None)
    with pytest.raises(FileNotFoundError, match=r"has no SICK_train.txt.gz, which --set sick reads"):
        inference(set="sick").load(tmp_path)
    with pytest.raises(ValueError, match="set must be one of snli, mnli, sick, or left out; got 'xnli'"):
        inference(set="xnli")
    with pytest.raises(ValueError, match="size must be small or paper, got 'large'"):
        inference(size="large")
    with pytest.raises(ValueError, match="unknown task 'vision'; choose from agreement, inference, "):
        recipe_of("vision", "4")
