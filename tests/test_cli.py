import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch
from refusals import refused
from typer.testing import CliRunner

from nplex.cli import app, spread
from nplex.files import read_json, read_tensors
from nplex.lab.recipes import tasks
from nplex.lab.recipes.subject_verb_agreement import agreement

RULES = ["dense", "2", "4:4"]
RUNS = ["dense-seed0", "2-seed0", "4-4-seed0"]


def line(rng):
    """Subject, perhaps with another noun behind it: the label is the subject's number."""
    subject = rng.choice(["key", "keys", "dog", "dogs"])
    label = "VBP" if subject.endswith("s") else "VBZ"
    if rng.random() < 0.5:
        return f"{label}\tthe {subject}\tplain\n"
    return f"{label}\tthe {subject} {rng.choice(['to', 'of'])} the {rng.choice(['door', 'doors'])}\tattractor\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny data folder; nobody writes into it."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    for split, count in (("train", 192), ("dev", 16), ("test", 24)):
        (folder / f"{split}.tsv").write_text("".join(line(rng) for _ in range(count)))
    return folder


def call(*arguments):
    return CliRunner().invoke(app, spread([str(argument) for argument in arguments]), prog_name="nplex")


def train(data, out, *more, verb="run", rule=("4",), epochs=1):
    return call(verb, "agreement", "--rule", *rule, "--epochs", epochs, "--data", data, "--out", out, *more)


def ok(result):
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module")
def compared(data, tmp_path_factory):
    """A finished comparison; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    return folder, ok(train(data, folder, verb="compare", rule=RULES))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    return folder, ok(train(data, folder))


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "copied")


def test_compare_prints_a_line_for_each_rule_and_the_majority(compared):
    rows = [row.split() for row in compared[1].stdout.splitlines() if row.strip()]
    assert [row[0] for row in rows if row[0] in {*RULES, "majority"}] == [*RULES, "majority"]
    assert {"attractor", "plain"} <= {word for row in rows for word in row}


def test_compare_writes_messages_to_stderr(compared):
    folder, result = compared
    assert [rule for rule in RULES if f"{rule}, seed 0: epoch 1, loss " not in result.stderr] == []
    assert str(folder) in result.stderr
    assert str(folder) not in result.stdout


def test_compare_writes_its_files(compared):
    folder, _ = compared
    assert {path.name for path in folder.iterdir()} == {
        "settings.json", "compare.json", "compare.md", "compare.png", *RUNS,
    }  # fmt: skip
    for run in RUNS:
        assert {path.name for path in (folder / run).iterdir()} == {
            "settings.json", "result.json", "log.jsonl", "vocabulary.json", "model.safetensors", "tensorboard",
            *([] if run == "dense-seed0" else ["rules.safetensors"]),
        }  # fmt: skip


def test_compare_draws_a_picture(compared):
    picture = (compared[0] / "compare.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")


def test_compare_json_and_results_agree(compared):
    folder, _ = compared
    summary = read_json(folder / "compare.json")
    assert [row["rule"] for row in summary["lines"]] == RULES
    for row, run in zip(summary["lines"], RUNS, strict=True):
        result = read_json(folder / run / "result.json")
        assert row["scores"] == result["scores"]
        assert row["layer_parameters"] == result["layer_parameters"]
        (answers,) = result["answers"]
        assert len(answers) == result["examples"] == 24
        assert result["scores"]["accuracy"] == pytest.approx(100 * answers.count("1") / 24)


def test_compare_json_has_the_majority_baseline(compared, data):
    """Counted again from the files: the commoner label of train, on test."""
    summary = read_json(compared[0] / "compare.json")
    labels = {
        split: [row.split("\t")[0] for row in (data / f"{split}.tsv").read_text().splitlines()]
        for split in ("train", "test")
    }
    common = max(("VBZ", "VBP"), key=labels["train"].count)
    assert summary["examples"] == len(labels["test"])
    name, scores = summary["baseline"]
    assert name == "majority"
    assert scores["accuracy"] == pytest.approx(100 * labels["test"].count(common) / len(labels["test"]))


def test_compare_counts_the_layers_parameters(compared):
    """2 blocks of width 128: 4 layers 128 x 128, one 128 -> 512, one 512 -> 128, with biases."""
    weights, biases = 2 * (4 * 128**2 + 2 * 128 * 512), 2 * (4 * 128 + 512 + 128)
    lines = read_json(compared[0] / "compare.json")["lines"]
    assert [row["layer_parameters"] for row in lines] == [
        weights + biases, weights // 2 + 12 * 2**3 + biases, weights // 4 + 12 * 3 * 4 * 4 + biases,
    ]  # fmt: skip
    assert lines[1]["share"] == pytest.approx(lines[1]["layer_parameters"] / lines[0]["layer_parameters"])


def test_compare_writes_the_table_as_markdown(compared):
    text = (compared[0] / "compare.md").read_text("utf-8")
    table = [row.split(" | ")[0].removeprefix("| ") for row in text.splitlines() if row.startswith("|")]
    assert table == ["rule", "---", *RULES, "majority"]
    assert "24 test examples. Each seed: dense " in text


def test_results_name_no_folder_of_the_user(compared, data):
    for path in compared[0].rglob("*"):
        if path.suffix in {".json", ".md", ".safetensors"}:
            assert str(data.parent).encode() not in path.read_bytes()


def test_model_files_hold_the_rule(compared):
    tensors, header = read_tensors(compared[0] / "4-4-seed0" / "model.safetensors")
    assert tensors["blocks.0.attention.query.rule.decode"].shape == (4, 4)
    assert tensors["blocks.1.up.components"].shape == (4, 128, 32)
    assert header["config"]["recipe"]["rule"] == "4:4"


def test_compare_with_seeds(data, tmp_path):
    ok(train(data, tmp_path / "out", "--seed", 1, 0, verb="compare", rule=["4"]))
    (row,) = read_json(tmp_path / "out" / "compare.json")["lines"]
    results = [read_json(tmp_path / "out" / f"4-seed{seed}" / "result.json") for seed in (0, 1)]
    assert row["seeds"] == [result["scores"]["accuracy"] for result in results]
    weights = [read_tensors(tmp_path / "out" / f"4-seed{seed}" / "model.safetensors")[0] for seed in (0, 1)]
    assert not torch.equal(weights[0]["classify.weight"], weights[1]["classify.weight"])


def test_run_trains_one_model(finished):
    folder, result = finished
    assert {path.name for path in folder.iterdir()} == {
        "settings.json", "result.json", "log.jsonl", "vocabulary.json", "model.safetensors", "tensorboard",
            "rules.safetensors",
    }  # fmt: skip
    assert [row.split()[0] for row in result.stdout.splitlines() if row.strip()][-2:] == ["4", "majority"]


def test_run_with_the_same_seed_gives_the_same_bits(finished, data, tmp_path):
    ok(train(data, tmp_path / "again"))
    first, again = ((folder / "model.safetensors").read_bytes() for folder in (finished[0], tmp_path / "again"))
    assert first == again


def test_run_puts_results_under_runs(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ok(call("run", "agreement", "--rule", "2:2", "--epochs", 1, "--seed", 3, "--data", data))
    assert (tmp_path / "runs" / "agreement-2-2-seed3" / "result.json").is_file()


def test_a_folder_with_results_is_kept(finished, data):
    before = (finished[0] / "result.json").read_bytes()
    refused(train(data, finished[0]), finished[0], "--resume goes on", "--force deletes", "--out takes another")
    assert (finished[0] / "result.json").read_bytes() == before


def test_resume_reads_a_finished_run(copied, data):
    before = {path.name: path.stat().st_mtime_ns for path in copied.iterdir()}
    result = ok(train(data, copied, "--resume"))
    assert "majority" in result.stdout
    assert "epoch" not in result.stderr
    assert {path.name: path.stat().st_mtime_ns for path in copied.iterdir()} == before


def test_resume_of_a_comparison_adds_a_rule(compared, data, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "out")
    before = (folder / "2-seed0" / "model.safetensors").stat().st_mtime_ns
    result = ok(train(data, folder, "--resume", verb="compare", rule=["2", "complex"]))
    assert (folder / "2-seed0" / "model.safetensors").stat().st_mtime_ns == before
    assert "complex, seed 0: epoch 1" in result.stderr
    assert [row["rule"] for row in read_json(folder / "compare.json")["lines"]] == [*RULES, "complex"]


def test_resume_with_other_settings_is_refused(copied, data):
    refused(train(data, copied, "--resume", epochs=2), copied, "other settings", "epochs was 1, now 2")


def test_resume_with_other_data_is_refused(copied, data, tmp_path):
    other = shutil.copytree(data, tmp_path / "elsewhere" / data.name)
    with (other / "dev.tsv").open("a") as file:
        file.write("VBZ\tkey\n")
    refused(train(other, copied, "--resume"), copied, "other settings", "dev.tsv")


def test_resume_where_nothing_is_starts(data, tmp_path):
    ok(train(data, tmp_path / "new", "--resume"))
    assert (tmp_path / "new" / "result.json").is_file()


def test_an_empty_folder_is_taken(data, tmp_path):
    ok(train(data, tmp_path))


def test_force_starts_anew(copied, data):
    before = (copied / "model.safetensors").read_bytes()
    result = ok(train(data, copied, "--force", rule=["2"]))
    assert (copied / "model.safetensors").read_bytes() != before
    assert read_json(copied / "result.json")["recipe"]["rule"] == "2"
    assert "epoch 1" in result.stderr


def test_force_deletes_nothing_where_a_strangers_file_is(copied, data):
    (copied / "thesis.txt").write_text("mine")
    refused(train(data, copied, "--force"), copied / "thesis.txt", "nplex did not create it")
    assert (copied / "result.json").is_file()
    assert (copied / "thesis.txt").read_text() == "mine"


def test_force_deletes_a_whole_comparison_and_nothing_strange_in_it(compared, data, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "out")
    (folder / "2-seed0" / "notes").write_text("mine")
    refused(train(data, folder, "--force", verb="compare", rule=["2"]), folder / "2-seed0" / "notes")
    (folder / "2-seed0" / "notes").unlink()
    ok(train(data, folder, "--force", verb="compare", rule=["2"]))
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"2-seed0"}


def test_a_comparison_is_no_guest_in_the_folder_of_a_run(copied, data):
    refused(train(data, copied, "--resume", verb="compare", rule=["2"]), copied, "holds a run, not a comparison")


def test_resume_and_force_exclude_each_other(copied, data):
    refused(train(data, copied, "--resume", "--force"), "--resume", "--force", "give one of them")
    assert (copied / "result.json").is_file()


@pytest.mark.parametrize(
    "rule",
    [
        "x",
        "0",
        "4:0",
        "true",
        "4:7:1",
        "-4",
        "4.0",
        "4:",
        ":4",
        "",
        "²",
        "Quaternion",
        "clifford(9,9)",
        "[bold]",
        "[/x]",
    ],
)
@pytest.mark.parametrize("verb", ["compare", "run"])
def test_a_wrong_rule_is_refused(data, tmp_path, verb, rule):
    result = call(verb, "agreement", f"--rule={rule}", "--data", data, "--out", tmp_path / "out")
    refused(
        result, "a rule is dense, a number n (learned), n:R (learned, at rank R) or an algebra's name", repr(rule)
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rule", "n"), [("129", 129), ("200:200", 200), ("1000000", 1_000_000), ("cyclic(17)", 17)])
@pytest.mark.parametrize("verb", ["compare", "run"])
def test_an_n_above_the_width_is_refused_before_any_work(data, tmp_path, monkeypatch, verb, rule, n):
    """Not after the rules before it were trained, and without a folder that is in the way next time."""
    if rule == "cyclic(17)":  # a table as wide as the task's own width takes long to write down
        monkeypatch.setitem(tasks.TASKS, "agreement", lambda **_: replace(agreement("dense"), width=16))
    rules = ["dense", rule] if verb == "compare" else [rule]
    refused(train(data, tmp_path / "out", verb=verb, rule=rules), f"n = {n} ")
    assert not (tmp_path / "out").exists()


def test_a_rule_given_twice_is_refused_before_any_work(copied, data):
    refused(train(data, copied, "--force", verb="compare", rule=["4", "4"]), "each rule may be given once, got 4 4")
    assert (copied / "result.json").is_file()


def test_a_wrong_rule_leaves_what_force_would_delete(copied, data):
    refused(train(data, copied, "--force", rule=["x"]))
    assert (copied / "result.json").is_file()


@pytest.mark.parametrize("seed", ["99999999999999999999", "-99999999999999999999"])
def test_a_seed_that_torch_cannot_take_is_refused(data, tmp_path, seed):
    refused(train(data, tmp_path / "out", f"--seed={seed}"), seed)
    assert not (tmp_path / "out").exists()


def test_an_unknown_task_is_refused(data):
    refused(
        call("run", "painting", "--data", data),
        "unknown task 'painting'; choose from agreement, inference, translation, style",
    )


def test_a_missing_data_folder_is_refused(tmp_path):
    refused(train(tmp_path / "nowhere", tmp_path / "out"), tmp_path / "nowhere", "train, dev and test")
    assert not (tmp_path / "out").exists()


def test_a_missing_part_is_refused(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    (folder / "test.tsv").unlink()
    refused(train(folder, tmp_path / "out"), folder, "has no test.tsv or test.tsv.gz")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("VBX\tthe key", "label must be VBZ or VBP, got 'VBX'"), ("VBZ", "got 1"), ("VBZ\t ", "a text is empty")],
)
def test_a_wrong_line_is_refused_by_file_and_number(data, tmp_path, wrong, message):
    folder = shutil.copytree(data, tmp_path / "data")
    with (folder / "dev.tsv").open("a") as file:
        file.write(f"{wrong}\n")
    refused(train(folder, tmp_path / "out"), f"{folder / 'dev.tsv'}, line 17: ", message)
    assert not (tmp_path / "out").exists()


def test_out_that_is_a_file_is_refused(data, tmp_path):
    (tmp_path / "out").write_text("mine")
    refused(train(data, tmp_path / "out", "--force"), tmp_path / "out", "is a file, expected a folder")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("option", ["--force", "--resume"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.txt", "mine", "is not a folder of nplex runs"),
        ("settings.json", '{"editor.fontSize": 12}', "is not a folder of nplex runs"),
        ("settings.json", '{"kind": "window", "format": 1}', "is not a folder of nplex runs"),
        ("settings.json", "{ // mine\n}", "settings.json is damaged or was not written by nplex"),
        ("settings.json", '{"kind": "run", "format": 1, "task": 3}', "settings.json is damaged: task is missing or"),
        ("settings.json", '{"kind": "run", "format": 2}', "settings.json has format 2, this nplex reads 1"),
    ],
    ids=["a text", "another program's", "another kind", "no strict JSON", "wrong types", "newer"],
)
def test_a_folder_of_somebody_else_is_never_touched(data, tmp_path, option, name, content, message):
    (tmp_path / name).write_text(content)
    (tmp_path / "inner").mkdir()
    refused(train(data, tmp_path, option), tmp_path, message)
    assert (tmp_path / name).read_text() == content
    assert (tmp_path / "inner").is_dir()


def test_a_run_folder_says_what_it_is(compared):
    folder, _ = compared
    assert read_json(folder / "settings.json").items() >= {"kind": "comparison", "format": 1}.items()
    assert read_json(folder / "2-seed0" / "settings.json").items() >= {"kind": "run", "format": 1}.items()


def test_a_run_folder_of_an_older_version_opens(copied, data):
    """Which named neither kind nor format."""
    settings = read_json(copied / "settings.json")
    (copied / "settings.json").write_text(
        json.dumps({k: settings[k] for k in settings if k not in ("kind", "format")})
    )
    assert "majority" in ok(train(data, copied, "--resume")).stdout
    (copied / "result.json").unlink()
    assert "epoch 1" in ok(train(data, copied, "--resume")).stderr
    assert read_json(copied / "settings.json") == settings


def test_a_folder_of_a_comparison_is_no_place_for_a_run(compared, data, tmp_path):
    folder = shutil.copytree(compared[0], tmp_path / "out")
    refused(train(data, folder, "--resume"), folder, "holds a comparison, not a run")
    assert (folder / "2-seed0" / "result.json").is_file()


@pytest.mark.parametrize("name", ["result.json", "settings.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"recipe": {"rule": "4"}}', "\x00"])
def test_damaged_json_is_refused(copied, data, name, content):
    (copied / name).write_text(content)
    refused(train(data, copied, "--resume"), copied)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x02\0\0\0\0\0\0\0{}"], ids=["empty", "garbage", "foreign"])
def test_a_damaged_checkpoint_is_refused(copied, data, content):
    (copied / "result.json").unlink()
    (copied / "checkpoint.safetensors").write_bytes(content)
    said = "was not written by nplex" if b"{" in content else "is damaged or"
    refused(train(data, copied, "--resume"), copied / "checkpoint.safetensors", said)


def test_another_program_s_tensors_as_checkpoint_are_refused(copied, data):
    (copied / "result.json").unlink()
    shutil.copy(copied / "model.safetensors", copied / "checkpoint.safetensors")
    refused(train(data, copied, "--resume"), copied / "checkpoint.safetensors")


def test_a_refusal_is_one_line_in_a_shell_too(data, tmp_path):
    done = subprocess.run(command(data, tmp_path / "[red]", "4:7:1"), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_names_in_square_brackets_are_told_as_they_are(tmp_path):
    refused(train(tmp_path / "[red]data", tmp_path / "out"), "[red]data has no train.tsv")
    refused(train(tmp_path / "[/b]", tmp_path / "out"), "[/b] has no train.tsv")


def test_a_run_folder_in_square_brackets_is_told_as_it_is(data, tmp_path):
    assert str(tmp_path / "[red]") in ok(train(data, tmp_path / "[red]")).stderr


def test_sources_in_square_brackets_are_told_as_they_are(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    with (folder / "test.tsv").open("a") as file:
        file.write("VBZ\tkey\t[/b]\nVBZ\tkey\t[red]\n")
    assert {"[/b]", "[red]"} <= set(ok(train(folder, tmp_path / "out")).stdout.split())


def command(data, out, rule, *more, epochs=1):
    return [
        sys.executable, "-m", "nplex", "run", "agreement", "--rule", rule, "--epochs", str(epochs), "--data", data,
        "--out", out, *more,
    ]  # fmt: skip


def interrupted(arguments, wait_for, number=signal.SIGINT, limit=60):
    """Sends a signal when stderr shows a text; gives exit code and stderr, without what was imported when."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    signal.signal(signal.SIGINT, before)
    killer = threading.Timer(limit, process.kill)
    killer.start()
    seen = ""
    try:
        for said in process.stderr:
            seen += "" if said.startswith("import time:") else said
            if said.rstrip().endswith(wait_for) or (wait_for in said and not said.startswith("import time:")):
                process.send_signal(number)
                wait_for = "\0"
        return process.wait(), seen
    finally:
        killer.cancel()
        process.kill()
        process.stderr.close()
        process.wait()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_ctrl_c_while_modules_are_loaded_is_no_traceback_and_leaves_a_folder_that_goes_on(data, tmp_path):
    """In torch's first second, before and after the verb begins, and when all is done."""
    for moment in (" nplex.on_start", " torch.types", " typer", " accelerate", " nplex.lab.experiment"):
        call_ = command(data, tmp_path / "out", "4", "--resume")
        code, said = interrupted([call_[0], "-X", "importtime", *call_[1:]], moment)
        assert (code, said.splitlines()) == (130, ["stopped"]), (moment, said)
    code, said = interrupted(command(data, tmp_path / "out", "4", "--resume"), "result and model are in")
    assert (code in (0, 130), "Traceback" in said) == (True, False)  # it may come before the last line is out
    assert "majority" in ok(train(data, tmp_path / "out", "--resume")).stdout


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_an_interrupted_run_resumes_to_the_same_bits(data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    epochs = 6  # so many that the signal comes before the last, whatever else the machine does
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, said = interrupted(command(data, broken, "4:4", epochs=epochs), "epoch 1,")
    assert (code, f"--resume --out {broken}" in said, "Traceback" in said) == (130, True, False), said
    assert said.count("stopped") == 1
    assert not (broken / "result.json").exists()
    state = read_tensors(broken / "checkpoint.safetensors")[1]["state"]
    assert 1 <= state["epoch"] < epochs

    resumed = ok(train(data, broken, "--resume", rule=["4:4"], epochs=epochs))
    assert f"epoch {state['epoch'] + 1}," in resumed.stderr
    assert "epoch 1," not in resumed.stderr
    ok(train(data, whole, rule=["4:4"], epochs=epochs))
    results = [read_json(folder / "result.json") for folder in (whole, broken)]
    for name in ("scores", "answers", "history"):
        assert results[0][name] == results[1][name]
    weights = [read_tensors(folder / "model.safetensors")[0] for folder in (whole, broken)]
    assert weights[0].keys() == weights[1].keys()
    assert [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])] == []
    assert not (broken / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("verb", ["compare", "run", "plan", "measure"])
def test_help_shows_an_example(verb):
    result = ok(call(verb, "--help"))
    assert "Examples:" in result.stdout
    assert result.stdout.count(f"nplex {verb} ") >= 2


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_names_the_verbs(arguments):
    result = call(*arguments)
    assert result.exit_code == (0 if arguments else 2)
    assert [
        verb for verb in ("compare", "run", "plan", "measure", "nplex compare agreement") if verb not in result.output
    ] == []


@pytest.mark.parametrize(("rule", "method"), [("4", "dense"), ("4:7", "bilinear"), ("quaternion", "bilinear")])
def test_plan_shows_what_is_chosen(rule, method):
    result = ok(call("plan", 512, 2048, "--tokens", 1024, "--rule", rule))
    (chosen,) = [row for row in result.stdout.splitlines() if row.endswith("<- chosen")]
    assert chosen.split()[0] == method


def test_plan_agrees_with_the_library():
    from nplex.ops import plan_for

    printed = ok(call("plan", 100, 30, "--tokens", 7, "--rule", "3:5")).stdout
    assert printed == f"{plan_for(100, 30, tokens=7, n=3, rank=5)}\n"


def test_plan_counts_gradients_and_what_is_at_hand():
    from nplex.ops import plan_for

    printed = ok(call("plan", 64, 32, "--tokens", 7, "--rule", "4:5", "--training", "--prepared")).stdout
    assert printed == f"{plan_for(64, 32, tokens=7, n=4, rank=5, training=True, prepared=True)}\n"


def test_measure_prints_the_machine_and_keeps_it(tmp_path, monkeypatch):
    from nplex import ops
    from nplex.ops import machine

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ops, "measure", lambda device: machine.DEFAULT)
    result = ok(call("measure"))
    assert result.stdout == f"{machine.DEFAULT}\n"
    assert "machine.json" in result.stderr
    assert list(machine.load(machine.cache_file()).values()) == [machine.DEFAULT]


def test_measure_refuses_a_device_that_is_not_there():
    refused(call("measure", "--device", "fly"), "device 'fly' cannot be measured")


@pytest.mark.parametrize(("rule", "message"), [("dense", "one way only"), ("0", "got '0'"), ("[/x]", "got '[/x]'")])
def test_plan_refuses_a_wrong_rule(rule, message):
    refused(call("plan", 8, 8, "--rule", rule), message)


@pytest.mark.parametrize("rule", ["cyclic(100000)", "matrices(1000)", "direct(100000)"])
def test_plan_refuses_an_algebra_that_fits_no_memory(rule):
    refused(call("plan", 8, 8, "--rule", rule), rule)


def test_plan_refuses_an_n_above_the_widths():
    refused(call("plan", 8, 8, "--rule", 16), "n = 16", "8")


@pytest.mark.parametrize("arguments", [["run"], ["run", "agreement", "--epochs", "0"], ["plan", "0", "4"], ["fly"]])
def test_a_wrong_call_is_refused(arguments):
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_version_of_the_module():
    done = subprocess.run([sys.executable, "-m", "nplex", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{version('nplex')}\n", "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["run", "--rule", "4"], ["run", "--rule", "4"]),
        (["--rule", "a", "b", "--seed", "0", "1"], ["--rule", "a", "--rule", "b", "--seed", "0", "--seed", "1"]),
        (["--rule", "a", "b", "--out", "c", "d"], ["--rule", "a", "--rule", "b", "--out", "c", "d"]),
        (["--rule=a", "b"], ["--rule=a", "b"]),
        ([], []),
    ],
)
def test_spread(typed, meant):
    assert spread(typed) == meant


def test_results_are_plain_json(finished):
    """No NaN, which other programs cannot read."""

    def refuse(name):
        raise AssertionError(name)

    json.loads((finished[0] / "result.json").read_text("utf-8"), parse_constant=refuse)
