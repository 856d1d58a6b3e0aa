"""What was trained is used: scored on other data, asked for predictions, opened in Python."""

import gzip
import json
import shutil

import pytest
import torch
from refusals import refused
from used_runs import ARGUMENTS, call, ok, trained, write_data

import nplex
from nplex.files import read_json, read_tensors, write_json, write_tensors
from nplex.lab.run_folder import MODEL, SETTINGS, VOCABULARY

LINES = {
    "agreement": ["the keys near it", "the dog near it"],
    "inference": ["a dog\tan animal"],
    "style": ["thou art a knave"],
    "language": ["the cat saw", "the "],
    "word": ["the cat saw", "the"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("used"))


@pytest.fixture(scope="module")
def runs(place):
    """A run of each task by its name; tests that change one take a copy."""
    return {task: trained(place, task) for task in ARGUMENTS}


@pytest.mark.parametrize("task", ARGUMENTS)
def test_a_run_scored_on_its_own_data_has_its_own_result(runs, place, task):
    data = place / ("language" if task == "word" else task)
    result = read_json(runs[task] / "result.json")
    (row,) = json.loads(ok(call("score", runs[task], "--data", data, "--json")).stdout)["runs"]
    assert [row[key] for key in ("scores", "examples", "kind")] == [result[k] for k in ("scores", "examples", "kind")]
    assert row["interval"] == pytest.approx(result["interval"])
    outcome = nplex.lab.load_run(runs[task]).score(data)
    assert (outcome.scores, outcome.answers) == (result["scores"], result["answers"])


def test_only_the_test_part_is_read_and_other_data_have_other_scores(runs, tmp_path):
    (tmp_path / "test.tsv").write_text("VBZ\tthe keys near it\nVBP\tthe keys near it\n")
    (row,) = json.loads(ok(call("score", runs["agreement"], "--data", tmp_path, "--json")).stdout)["runs"]
    assert row["scores"] == {"accuracy": 50.0}
    assert row["interval"][0] < 50.0 < row["interval"][1]


def test_runs_stand_beside_each_other_with_their_difference(runs, place, tmp_path):
    other = tmp_path / "other"
    data = place / "agreement"
    ok(
        call(
            "compare",
            "agreement",
            "--data",
            data,
            "--epochs",
            1,
            *ARGUMENTS["agreement"][:8],
            "--rule",
            "dense",
            "--out",
            other,
        )
    )
    done = ok(call("score", runs["agreement"], other, "--data", data))
    assert "to the first" in done.stdout
    (first, second) = [
        row for row in done.stdout.splitlines() if "dense-seed0" in row or str(runs["agreement"]) in row
    ]
    assert "(" not in first
    assert "(" in second


def said(prediction):
    return prediction.get("label", prediction.get("text"))


@pytest.mark.parametrize("task", ARGUMENTS)
def test_one_line_in_is_one_line_out_and_python_gives_the_same(runs, tmp_path, task):
    lines = LINES[task] * 3
    file = tmp_path / "lines.txt.gz"
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    done = ok(call("predict", runs[task], file))
    assert f"{len(lines)} lines in" in done.stderr
    written = done.stdout.split("\n")[:-1]
    found = nplex.lab.load_run(runs[task]).predict(lines)
    assert len(written) == len(found) == len(lines)
    assert [row.split("\t")[0] for row in written] == [" ".join(said(each).splitlines()) for each in found]
    objects = [
        json.loads(row)
        for row in ok(call("predict", runs[task], "-", "--json", stdin="\n".join(lines))).stdout.splitlines()
    ]
    assert [each["input"] for each in objects] == lines
    if task in ("agreement", "inference"):
        assert [each["label"] for each in objects] == [said(each) for each in found]
        for row, each in zip(written, objects, strict=True):
            assert sum(each["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert float(row.split("\t")[1]) == pytest.approx(max(each["probabilities"].values()), abs=1e-4)
    else:
        assert [each["text"] for each in objects] == [said(each) for each in found]


def test_predicted_labels_are_those_that_the_run_was_scored_by(runs, place):
    rows = [row.split("\t") for row in (place / "agreement" / "test.tsv").read_text().splitlines()]
    found = nplex.lab.load_run(runs["agreement"]).predict([row[1] for row in rows])
    right = "".join(str(int(each["label"] == row[0])) for each, row in zip(found, rows, strict=True))
    assert [right] == read_json(runs["agreement"] / "result.json")["answers"]


def test_a_text_is_continued_as_whole_forwards_would(runs):
    """Greedily, one byte after another, of prompts of several lengths at once."""
    model, tokenizer, task = nplex.lab.load_run(runs["language"])
    for prompt, found in zip(
        LINES["language"], nplex.lab.load_run(runs["language"]).predict(LINES["language"]), strict=True
    ):
        numbers = list(prompt.encode())[-task.length // 2 :]
        written = []
        while len(numbers) <= task.length:
            x = model._embed(torch.tensor([numbers]), 0)
            for block in model.blocks:
                x = block(x, causal=True)
            numbers.append(int(model._logits(x)[0, -1].argmax()))
            if numbers[-1] == ord("\n"):
                break
            written.append(numbers[-1])
        assert found["text"] == tokenizer.decode(written)


def test_loading_leaves_random_numbers_and_needs_no_code_of_the_run(runs):
    state = torch.get_rng_state()
    model, tokenizer, task = nplex.lab.load_run(str(runs["agreement"]))
    assert torch.equal(torch.get_rng_state(), state)
    assert (task.name, task.rule, task.width, task.schedule.epochs) == ("agreement", "4", 16, 1)
    assert not model.training
    assert len(tokenizer) == len(model.words.weight)
    saved = read_tensors(runs["agreement"] / MODEL)[0]
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_an_own_algebra_is_kept_with_the_run(runs):
    task = nplex.lab.load_run(runs["language"]).task
    assert (task.rule, task.made_rule().algebra.table.tolist()) == ("own.json", [[[1, 0], [0, 1]], [[0, 1], [1, 0]]])


def settings(change):
    """Another value in settings.json, and in the model's header as well."""

    def damage(run):
        values = read_json(run / SETTINGS)
        change(values)
        write_json(run / SETTINGS, values)
        tensors, header = read_tensors(run / MODEL)
        own = {key: value for key, value in values.items() if key not in ("kind", "format")}
        write_tensors(run / MODEL, tensors, header | {"config": own})

    return damage


def recipe(**values):
    return settings(lambda found: found["recipe"].update(values))


def model(change):
    def damage(run):
        tensors, header = read_tensors(run / MODEL)
        change(tensors, header)
        write_tensors(run / MODEL, tensors, header)

    return damage


def text(name, written):
    return lambda run: (run / name).write_text(written)


def lost(name):
    return lambda run: (run / name).unlink()


COMPARISON = '{"kind": "comparison", "format": 1, "task": "x", "rules": [], "seeds": []}'
DAMAGES = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "empty": (lambda run: [each.unlink() for each in run.glob("*.*")], "is not a folder of nplex run"),
    "not finished": (lost("result.json"), "holds no finished run"),
    "settings cut off": (text(SETTINGS, '{"kind'), "is damaged"),
    "another kind": (text(SETTINGS, COMPARISON), "holds no finished run"),
    "no model": (lost(MODEL), f"holds no {MODEL}"),
    "model cut off": (lambda run: (run / MODEL).write_bytes((run / MODEL).read_bytes()[:-9]), MODEL),
    "another model": (model(lambda tensors, header: tensors.popitem()), "is not what"),
    "model of others": (model(lambda tensors, header: header.pop("config")), "other settings"),
    "no vocabulary": (lost(VOCABULARY), VOCABULARY),
    "another vocabulary": (text(VOCABULARY, '{"words": 3}'), "expected words"),
    "vocabulary cut off": (text(VOCABULARY, "["), VOCABULARY),
    "short vocabulary": (text(VOCABULARY, '{"words": ["<pad>", "<unknown>", "<query>"]}'), "is not what"),
    "unknown task": (settings(lambda values: values.update(task="vision")), "names the task 'vision'"),
    "own task": (settings(lambda values: values.update(task="own:Mine")), "--task own:Mine"),
    "huge": (recipe(width=2**30), "is not what"),
    "unknown setting": (recipe(depth=1), "depth is not a setting"),
    "wrong setting": (recipe(layers="1"), "layers must be a whole number"),
    "no schedule": (recipe(schedule=None), "schedule is None"),
    "wrong table": (recipe(table=[[1]]), "is damaged"),
}  # fmt: skip


def test_written_lines_are_those_that_the_run_was_scored_by(runs, place):
    """With spaces around them, which the reader of pairs takes away."""
    lines = [f" {line} " for line in (place / "style" / "test.source").read_text().splitlines()]
    found = nplex.lab.load_run(runs["style"]).predict(lines)
    assert [each["text"] for each in found] == read_json(runs["style"] / "result.json")["answers"]


@pytest.mark.parametrize("verb", ["score", "predict"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_one_line(runs, place, tmp_path, unchecked, verb, damage):
    run = shutil.copytree(runs["agreement"], tmp_path / "run")
    harm, message = DAMAGES[damage]
    harm(run)
    more = ["--data", place / "agreement"] if verb == "score" else [place / "own.json"]
    refused(call(verb, run, *more), message)


def test_a_damaged_tokenizer_of_subwords_is_one_line(runs, tmp_path):
    run = shutil.copytree(runs["style"], tmp_path / "run")
    for values in ({}, {"model": {"type": "BPE", "vocab": {}, "merges": []}}):
        write_json(run / VOCABULARY, values)
        refused(call("predict", run, "-", stdin="thou"), VOCABULARY, "subwords")


BAD_INPUT = {
    "no such file": (["predict", "agreement", "nowhere.txt"], None, "nowhere.txt"),
    "a folder": (["predict", "agreement", "."], None, "directory"),
    "an empty file": (["predict", "agreement", "-"], "", "stdin is empty"),
    "an empty line": (["predict", "style", "-"], "thou\n\nart", "stdin, line 2: expected text, got an empty text"),
    "a line of data": (["predict", "agreement", "-"], "VBZ\tthe key", "the words before the verb, got 2 columns"),
    "a premise alone": (["predict", "inference", "-"], "a dog", "line 1: expected premise TAB hypothesis, got 1"),
    "no UTF-8": (["predict", "agreement", "-"], b"\xff\n", "expected UTF-8"),
    "no task": (["predict", "agreement", "-", "--task", "nowhere:Mine"], "x", "nowhere"),
    "no data folder": (["score", "agreement", "--data", "nowhere"], None, "nowhere has no test.tsv"),
    "no built-in data": (["score", "inference"], None, "has no built-in data"),
    "an unknown set": (["score", "agreement", "--set", "x"], None, "leave --set out"),
    "several tasks": (["score", "agreement", "inference", "--data", "."], None, "one task"),
    "several measures": (["score", "language", "word", "--data", "DATA"], None, "one measure"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(runs, place, tmp_path, monkeypatch, case):
    arguments, stdin, message = BAD_INPUT[case]
    monkeypatch.chdir(tmp_path)
    given = [runs.get(each, place / "language" if each == "DATA" else each) for each in arguments]
    refused(call(*given, stdin=stdin), message)


@pytest.mark.parametrize("verb", ["score", "predict"])
def test_control_c_is_130(runs, place, monkeypatch, verb):
    from nplex.lab.recipes.classification import Classification

    def stop(*_, **__):
        raise KeyboardInterrupt

    for name in ("test", "predict"):
        monkeypatch.setattr(Classification, name, stop)
    more = ["--data", place / "agreement"] if verb == "score" else ["-"]
    done = call(verb, runs["agreement"], *more, stdin="the key")
    assert done.exit_code == 130
