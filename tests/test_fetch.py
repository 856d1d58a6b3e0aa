import gzip
import json

import pytest
from typer.testing import CliRunner

from nplex.cli import app
from nplex.lab.public_sets import SETS, fetch
from nplex.lab.recipes.tasks import recipe_of

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def copy_of(folder, rows, splits=("train", "validation", "test")):
    """A copy as datasets reads it: JSON lines, and a card that names the splits."""
    folder.mkdir()
    files = [f"  - {{split: {split}, path: {split}.jsonl}}" for split in splits]
    (folder / "README.md").write_text(
        "\n".join(["---", "configs:", "- config_name: default", "  data_files:", *files, "---"])
    )
    for split in splits:
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def pair(label, premise="a man\tsleeps ", hypothesis="he\n rests"):
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def lines(path):
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def test_labelled_pairs_are_read_by_the_recipe(tmp_path):
    rows = [pair(0), pair(1), pair(2), pair(-1), pair(2, hypothesis=" ")]
    told = []
    paths = fetch(
        "snli", tmp_path / "out", copy=copy_of(tmp_path / "copy", rows), report=lambda *part: told.append(part)
    )
    assert [path.name for path in paths] == ["train.tsv.gz", "dev.tsv.gz", "test.tsv.gz"]
    assert told == [("train", 3), ("dev", 3), ("test", 3)]
    assert lines(paths[0]) == [
        f"{label}\ta man sleeps\the rests" for label in ("entailment", "neutral", "contradiction")
    ]
    data = recipe_of("inference", "dense").load(tmp_path / "out")
    assert data.test.labels.tolist() == [0, 1, 2]


def test_labels_may_be_words(tmp_path):
    rows = [pair("entails"), pair("neutral")]
    (first, *_) = fetch("scitail", tmp_path / "out", copy=copy_of(tmp_path / "copy", rows))
    assert [line.split("\t")[0] for line in lines(first)] == ["entailment", "neutral"]


def test_examples_may_have_sources_and_splits_other_names(tmp_path):
    rows = [pair(0) | {"genre": "fiction"}]
    copy = copy_of(tmp_path / "copy", rows, ("train", "validation_matched", "validation_mismatched"))
    paths = fetch("mnli", tmp_path / "out", copy=copy)
    assert [lines(path)[0].split("\t")[-1] for path in paths] == ["fiction"] * 3


def test_a_translation_has_a_file_for_each_side(tmp_path):
    copy = copy_of(tmp_path / "copy", [{"de": "ein Haus", "en": "a house"}, {"de": "", "en": "x"}] * 12)
    paths = fetch("multi30k", tmp_path / "out", copy=copy)
    assert [path.name for path in paths][:2] == ["train.de.gz", "train.en.gz"]
    assert lines(paths[0]) == ["ein Haus"] * 12
    assert recipe_of("translation", "dense").load(tmp_path / "out").test.pairs[0] == ("ein Haus", "a house")


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("snli", [{"premise": "a", "label": 0}], "hypothesis is missing"),
        ("snli", [pair("maybe")], "got 'maybe'"),
        ("snli", [pair(7)], "got 7"),
        ("nothing", [pair(0)], "choose from snli, mnli, scitail, multi30k"),
    ],
)
def test_what_is_not_as_expected_is_told_and_leaves_nothing(tmp_path, name, rows, message):
    copy = copy_of(tmp_path / "copy", rows)
    with pytest.raises(ValueError, match=message):
        fetch(name, tmp_path / "out", copy=copy)
    assert list((tmp_path / "out").glob("*")) == []


def test_files_that_are_there_are_kept(tmp_path):
    copy = copy_of(tmp_path / "copy", [pair(0)])
    fetch("snli", tmp_path / "out", copy=copy)
    with pytest.raises(FileExistsError, match=r"train\.tsv\.gz exists"):
        fetch("snli", tmp_path / "out", copy=copy)


def test_the_verb_says_how_to_go_on(tmp_path):
    copy = copy_of(tmp_path / "copy", [pair(0)])
    done = CliRunner().invoke(app, ["fetch", "snli", "--out", str(tmp_path / "out"), "--from", copy])
    assert done.exit_code == 0, done.output
    assert f"nplex run inference --data {tmp_path / 'out'}" in done.stdout
    assert SETS["snli"].licence in done.stderr


def test_a_place_that_is_not_there_is_one_line(tmp_path):
    done = CliRunner().invoke(app, ["fetch", "snli", "--out", str(tmp_path / "out"), "--from", str(tmp_path / "no")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "could not be loaded" in done.stderr
    assert "--from FOLDER" in done.stderr
