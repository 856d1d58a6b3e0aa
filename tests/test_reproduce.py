import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nplex.cli import app, spread
from nplex.files import read_json
from nplex.lab.recipes import paper, tables

PARTS = tables.PARTS
EVERY = (paper.AGREEMENT, paper.INFERENCE, paper.TRANSLATION, paper.STYLE)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """All data of a tiny table: sentences below `agreement`, pairs of words below `style`."""
    folder, rng = tmp_path_factory.mktemp("all"), random.Random(0)
    (folder / "agreement").mkdir()
    for part, count in {"train": 128, "dev": 16, "test": 40}.items():
        lines = []
        for _ in range(count):
            noun = rng.choice(["key", "keys", "dog", "dogs"])
            lines.append(f"{'VBP' if noun.endswith('s') else 'VBZ'}\tthe {noun}\t{rng.choice('12')}\n")
        (folder / "agreement" / f"{part}.tsv").write_text("".join(lines))
    (folder / "style").mkdir()
    for part, count in {"train": 32, "valid": 4, "test": 6}.items():
        words = [" ".join(rng.choice(["thou", "art", "a", "knave"]) for _ in range(4)) for _ in range(count)]
        for side in ("modern", "original"):
            (folder / "style" / f"{part}.{side}.nltktok").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The tables with one epoch and one seed."""
    parts = {part.name: replace(part, epochs=1, seeds=(0,), rules=("dense", "8")) for part in tables.PARTS}
    monkeypatch.setattr(tables, "PARTS", tuple(parts.values()))


def call(*arguments):
    return CliRunner().invoke(app, spread([str(argument) for argument in arguments]), prog_name="nplex")


def repeated(table, data, place, *more):
    return call("reproduce", table, "--data", data, "--out", place / "runs", "--results", place / "results", *more)


@pytest.mark.parametrize(
    ("table", "name", "column"),
    [("agreement", "agreement-linzen", "agreement accuracy %"), ("style", "style-shakespeare", "Shakespeare BLEU")],
)
def test_a_table_is_run_once_and_set_beside_the_paper(data, tmp_path, table, name, column):
    first = repeated(table, data, tmp_path)
    assert first.exit_code == 0, first.output
    assert column in first.stdout
    assert "epoch 1" in first.stderr
    page = (tmp_path / "results" / f"{name}.md").read_text()
    assert "What differs from the paper:" in page
    assert f"`nplex reproduce {name} --data DIR`" in page
    result = read_json(tmp_path / "results" / f"{name}.json")
    assert [run["recipe"]["rule"] for run in result["runs"]] == ["dense", "8"]
    assert result["differences"].keys() == {"8"}
    dense, eight = (next(iter(run["scores"].values())) for run in result["runs"])
    assert result["differences"]["8"]["mean"] == pytest.approx(eight - dense, abs=1e-6)
    assert (tmp_path / "results" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    again = repeated(table, data, tmp_path)
    assert again.stdout == first.stdout
    assert "epoch" not in again.stderr
    assert (tmp_path / "results" / f"{name}.md").read_text() == page


def test_force_runs_anew(data, tmp_path):
    repeated("agreement", data, tmp_path)
    again = repeated("agreement", data, tmp_path, "--force")
    assert again.exit_code == 0, again.output
    assert "epoch 1" in again.stderr


def test_other_rules_and_seeds_are_named_by_the_command(data, tmp_path):
    assert repeated("agreement", data, tmp_path, "--rule", "2", "--seed", "3").exit_code == 0
    page = (tmp_path / "results" / "agreement-linzen.md").read_text()
    assert "`nplex reproduce agreement-linzen --data DIR --rule 2 --seed 3`" in page
    assert (tmp_path / "results" / "agreement-linzen.png").exists()
    assert repeated("agreement", data, tmp_path, "--rule", "8").exit_code == 0
    page = (tmp_path / "results" / "agreement-linzen.md").read_text()
    assert "`nplex reproduce agreement-linzen --data DIR --rule 2 8 --seed 0 3`" in page


def test_counts_and_digests_are_those_of_what_was_read(data, tmp_path):
    assert repeated("agreement", data, tmp_path, "--rule", "2").exit_code == 0
    page = (tmp_path / "results" / "agreement-linzen.md").read_text()
    digest = hashlib.sha256((data / "agreement" / "train.tsv").read_bytes()).hexdigest()
    assert f"128 for train and 40 for test (train.tsv {digest[:8]}," in page
    assert "not the files that nplex's own results were made of" in page
    assert "1.58 million" not in page
    read = read_json(tmp_path / "results" / "agreement-linzen.json")["read"]
    assert (read["sizes"], read["files"]["train.tsv"]) == ({"train": 128, "dev": 16, "test": 40}, digest)


@pytest.mark.parametrize("part", [part for part in PARTS if part.digest], ids=lambda part: part.name)
def test_what_is_said_of_files_is_of_those_that_the_results_were_made_of(part):
    runs = read_json(Path(__file__).parents[1] / "results" / f"{part.name}.json")["runs"]
    found = tables.Provenance(
        {"train": 1, "dev": 1, "test": 1}, {k: v for k, v in runs[0]["data"].items() if k != "name"}
    )
    assert part.data in part.differs("small", found)


def test_the_list_says_what_is_needed_and_what_is_there(data):
    found = call("reproduce", "--list", "--data", data)
    assert found.exit_code == 0
    lines = {line.split()[0]: line for line in found.stdout.splitlines() if line.strip()}
    assert {part.name for part in tables.PARTS} <= lines.keys()
    assert "(there)" in lines["agreement-linzen"]
    assert "(missing)" in lines["inference-snli"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the name of a table"),
        (["agreement"], "give its folder with --data"),
        (
            ["grammar", "--data", "."],
            "unknown table 'grammar'; choose from agreement, inference,",
        ),
        (["inference-snli", "--data", "."], "inference-snli reads inference, which is not a folder"),
        (["agreement", "--data", ".", "--rule", "x"], "agreement"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    found = call("reproduce", *arguments)
    assert (found.exit_code, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_every_part_has_its_recipe_and_its_published_rows():
    for part in PARTS:
        assert part.rules[0] == "dense"
        for rule in part.rules:
            recipe = part.recipe(rule, "small")
            assert (recipe.name, recipe.rule, recipe.set) == (part.task, rule, part.set)
            assert (part.published(rule) is None) == (not part.column)


@pytest.mark.parametrize("table", EVERY)
def test_the_papers_parameters_fall_by_n(table):
    """Within a tenth, and what the rules themselves take."""
    factors = {"K": 1e3, "M": 1e6}
    size = {rule: float(row[0][:-1]) * factors[row[0][-1]] for rule, row in table.rows.items()}
    for rule, parameters in size.items():
        n = {"dense": 1, "quaternion": 4}.get(rule) or int(rule)
        assert size["dense"] / n * 0.98 < parameters < size["dense"] / n * 1.13
