"""The search for a rule: on functions whose best rules are known."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import tune_cases
from typer.testing import CliRunner

import nplex
from nplex.cli import app, spread
from nplex.lab.tuning import Goals, Measured, Pareto, Row, rules_to_try, search, tune

pytest.importorskip("optuna", reason="needs nplex[lab]")

SMALL = rules_to_try([2, 4, 8], ["full", "generic"])
TWO = Goals(("size", "quality"))
TESTS = Path(tune_cases.__file__).parent


def result_of(goals, **rows):
    return Pareto("t", goals, {}, rows=tuple(Row(rule.removeprefix("n"), found) for rule, found in rows.items()))


def cli(*arguments):
    return CliRunner().invoke(app, spread([str(argument) for argument in arguments]), prog_name="nplex")


def begin(objective, folder, *more, calls):
    """The verb in a process of its own."""
    command = [sys.executable, "-m", "nplex", "tune", f"tune_cases:{objective}", "--out", folder, *more]
    return subprocess.Popen(
        [str(part) for part in command], cwd=TESTS, env=os.environ | {"NPLEX_TEST_CALLS": str(calls)}, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip


def until_it_measures(process, calls, count):
    until = time.monotonic() + 200
    while not (calls.exists() and len(calls.read_text().splitlines()) >= count):
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_every_rule_is_tried_once():
    rules = rules_to_try()
    assert rules[0] == "dense"
    assert len(rules) == len(set(rules)) == 27
    assert set(rules_to_try([1, 2], ["full"], ["quaternion"])) == {"dense", "2", "quaternion"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": [0]}, "n must be numbers from 1 to 256, got 0"),
        ({"ranks": ["half"]}, "ranks must be some of full, generic, between, n; got 'half'"),
        ({"algebras": ["4"]}, "algebras must be names"),
        ({"algebras": ["quaternoin"]}, "a rule is dense"),
        ({"n": [1]}, "nothing to compare"),
    ],
)
def test_wrong_rules_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        rules_to_try(**wrong)


def test_a_budget_for_all_rules_measures_all_and_finds_the_known_front(tmp_path):
    found = tune(tune_cases.known, tmp_path, rules=SMALL, trials=len(SMALL), goals=TWO)
    assert {row.rule for row in found.rows} == set(SMALL)
    assert {row.rule for row in found.rows if row.pareto} == {"4", "8"}
    assert found.recommended.rule == "4"
    assert "nplex.convert_(model, rule=4)" in (tmp_path / "tune.md").read_text("utf-8")
    data = json.loads((tmp_path / "tune.json").read_text("utf-8"))
    assert data["recommended"]["rule"] == "4"
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_no_rule_of_the_front_is_beaten_and_each_other_is(tmp_path):
    goals = Goals()
    found = tune(tune_cases.known, tmp_path, rules=rules_to_try([2, 8]), trials=5, goals=goals)
    assert len(found.rows) == 5  # of 7: by TPE
    losses = {row.rule: [goals.loss(row.measured, goal) for goal in goals.which] for row in found.rows}
    for row in found.rows:
        beaten = any(
            other != losses[row.rule] and all(a <= b for a, b in zip(other, losses[row.rule], strict=True))
            for other in losses.values()
        )
        assert row.pareto == (not beaten)


@pytest.mark.parametrize(
    ("goals", "rule"),
    [
        (Goals(("size", "quality"), margin=2.0), "8"),
        (Goals(("size", "quality"), margin=1.0), "4"),
        (TWO, "4"),
        (Goals(("size", "quality"), margin=0.0), "2"),
        (Goals(("quality", "speed")), "2"),
        (Goals(("quality",)), "2"),
        (Goals(("quality",), lower=True), "8"),
    ],
)
def test_the_recommended_rule_follows_the_goals(goals, rule):
    found = result_of(
        goals,
        dense=Measured(90.0, 100, 3.0, 89.5, 90.5),
        n2=Measured(90.2, 50, 2.0),
        n4=Measured(89.6, 25, 2.5),
        n8=Measured(88.5, 12, 1.0),
    )
    assert found.recommended.rule == rule


def test_nothing_is_recommended_without_dense():
    found = result_of(Goals(), n2=Measured(1.0, 1, 1.0))
    assert found.recommended is None
    assert "dense is not measured yet" in found.advice()


def test_a_plain_number_is_enough():
    found = search.measure(tune_cases.plain, "4")
    assert found.score == 0.25
    assert found.parameters == 4 * 256**2 + 64
    assert found.seconds >= 0


def test_measuring_neither_draws_from_the_callers_random_numbers_nor_depends_on_them():
    states = torch.get_rng_state(), random.getstate()
    first = search.measure(tune_cases.drawn, "4")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    torch.rand(3)
    assert search.measure(tune_cases.drawn, "4").score == first.score
    assert search.measure(tune_cases.drawn, "8").score != first.score


def test_a_second_call_measures_only_what_is_new(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("NPLEX_TEST_CALLS", str(calls))
    for trials in (2, 50):
        tune(tune_cases.noted, tmp_path / "out", rules=SMALL, trials=trials, goals=TWO)
        rules = [line.split()[0] for line in calls.read_text().splitlines()]
        assert len(rules) == len(set(rules)) == min(trials, len(SMALL))
    assert rules[0] == "dense"


def test_two_processes_on_one_storage_share_the_work(tmp_path):
    calls, url = tmp_path / "calls", f"sqlite:///{tmp_path / 'shared.db'}"
    both = [
        begin("noted", tmp_path / name, "--n", "2..3", "--trials", 20, "--storage", url, calls=calls)
        for name in ("one", "two")
    ]
    for process in both:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    rules = rules_to_try([2, 3])
    assert {line.split()[0] for line in calls.read_text().splitlines()} == set(rules)
    assert len({line.split()[1] for line in calls.read_text().splitlines()}) == 2
    tables = [json.loads((tmp_path / name / "tune.json").read_text())["rows"] for name in ("one", "two")]
    assert tables[0] == tables[1]
    assert {row["rule"] for row in tables[0]} == set(rules)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_search_goes_on(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    process = begin("waits", tmp_path / "out", "--n", "2", "4", "--rank", "full", calls=calls)
    until_it_measures(process, calls, 2)
    process.kill()
    process.communicate()
    for name, value in {"NPLEX_TEST_CALLS": str(calls), "NPLEX_TEST_GO_ON": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(search, "HEARTBEAT", 1)
    monkeypatch.setattr(search, "GRACE", 1)
    found = tune(tune_cases.waits, tmp_path / "out", rules=rules_to_try([2, 4], ["full"]))
    assert [row.rule for row in found.rows] == ["4", "2", "dense"]
    rules = [line.split()[0] for line in calls.read_text().splitlines()]
    assert sorted(rules) == ["2", "2", "4", "dense"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_control_c_is_one_line_and_the_search_goes_on(tmp_path, monkeypatch):
    calls, out = tmp_path / "calls", tmp_path / "out"
    process = begin("waits", out, "--n", "2", "4", "--rank", "full", calls=calls)
    until_it_measures(process, calls, 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    assert f"--resume --out {out}" in said
    assert "Traceback" not in said
    assert [row["rule"] for row in json.loads((out / "tune.json").read_text("utf-8"))["rows"]] == ["dense"]
    for name, value in {"NPLEX_TEST_CALLS": str(calls), "NPLEX_TEST_GO_ON": "1"}.items():
        monkeypatch.setenv(name, value)
    found = tune(tune_cases.waits, out, rules=rules_to_try([2, 4], ["full"]))
    assert [row.rule for row in found.rows] == ["4", "2", "dense"]


def test_a_failing_rule_is_told_and_the_others_go_on(tmp_path):
    found = tune(tune_cases.refuses_five, tmp_path, rules=["5", "2"])
    assert [row.rule for row in found.rows] == ["2", "dense"]
    assert found.failed["5"] == "ValueError: width 128 cannot have n = 5"
    assert "Traceback" in (tmp_path / "failed-5.txt").read_text("utf-8")


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (tune_cases.refuses_all, "dense could not be measured: ValueError: no data here"),
        (tune_cases.no_number, "must return a number or nplex.lab.tuning.Measured, got str"),
    ],
)
def test_without_dense_there_is_no_result(tmp_path, objective, message):
    with pytest.raises(ValueError, match=message):
        tune(objective, tmp_path, rules=SMALL)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        search.measure(lambda rule: float("nan"), "dense")


def test_other_settings_are_refused(tmp_path):
    tune(tune_cases.known, tmp_path, rules=SMALL, trials=1)
    with pytest.raises(ValueError, match=r"other settings .*take another --out"):
        tune(tune_cases.known, tmp_path, rules=SMALL[:3], trials=1)


@pytest.mark.parametrize("url", ["nowhere", "mysterydb://me:secret@a", "sqlite:////nowhere/at/all/x.db"])
def test_a_storage_that_cannot_be_opened_is_refused(tmp_path, url):
    with pytest.raises(ValueError, match="cannot be opened, expected a database URL") as error:
        tune(tune_cases.known, tmp_path, storage=url)
    assert "secret" not in str(error.value)


def test_the_verb_prints_table_and_line(tmp_path):
    arguments = ("tune", "tune_cases:known", "--n", 2, 4, "--rank", "full", "--goal", "size", "quality")
    result = cli(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nplex.convert_(model, rule=4)" in result.stdout
    assert "dense: score 90" in result.stderr
    refused = cli(*arguments, "--out", tmp_path / "out")
    assert (refused.exit_code, "--resume goes on" in refused.stderr) == (2, True)
    assert cli(*arguments, "--out", tmp_path / "out", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing:here"], "'nothing:here' names no function"),
        (["tune_cases:nothing"], "names no function, expected my_module:my_function"),
        (["tune_cases:number"], "must be a function, got a int"),
        (["fly"], "'fly'"),
        (["tune_cases:known", "--n", "x"], "n must be numbers from 1 to 256, or a range as 2..8; got 'x'"),
        (["tune_cases:known", "--n", "999999999"], "n must be numbers from 1 to 256"),
        (["tune_cases:known", "--goal", "fun"], "goals must be some of size, speed, quality; got 'fun'"),
        (["tune_cases:known", "--margin", "-1"], "margin must be a number of 0 or more, got -1"),
        (["tune_cases:known", "--epochs", "3"], "--epochs is for tasks"),
        (["tune_cases:known", "--storage", "x://y"], "cannot be opened"),
        (["tune_cases:refuses_all"], "dense could not be measured"),
        (["agreement", "--lower"], "--lower is for functions"),
        (["agreement", "--n", "2", "129", "--rank", "n"], "n = 129"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, arguments, message):
    result = cli("tune", *arguments, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("nplex: ")
    assert message in last
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny data folder of the agreement task."""
    folder = tmp_path_factory.mktemp("data")
    lines = "VBZ\tthe key\tmade\nVBP\tthe keys\tmade\n"
    for part, count in {"train": 64, "dev": 8, "test": 16}.items():
        (folder / f"{part}.tsv").write_text(lines * (count // 2))
    return folder


def test_a_task_is_trained_once_with_each_rule_and_the_line_of_code_gives_what_was_measured(data, tmp_path):
    from nplex.lab.experiment import layer_parameters
    from nplex.lab.recipes.tasks import recipe_of

    out = tmp_path / "out"
    arguments = ("tune", "agreement", "--data", data, "--epochs", 1, "--n", 4, "--rank", "full", "n", "--shared")
    first = cli(*arguments, "--trials", 2, "--out", out)
    assert first.exit_code == 0, first.output
    before = (out / "dense-seed0" / "model.safetensors").stat().st_mtime_ns
    more = cli(*arguments, "--trials", 9, "--out", out, "--resume")
    assert more.exit_code == 0, more.output
    found = json.loads((out / "tune.json").read_text())
    assert (out / "dense-seed0" / "model.safetensors").stat().st_mtime_ns == before
    rows = {row["rule"]: row["measured"]["parameters"] for row in found["rows"]}
    assert set(rows) == {"dense", "4", "4:4"}

    recipe = recipe_of("agreement", "dense")
    model = recipe.build(recipe.load(data))
    assert layer_parameters(model, recipe.converted) == rows["dense"]
    exec(found["recommended"]["code"], {"nplex": nplex, "model": model})
    assert layer_parameters(model, recipe.converted) == rows[found["recommended"]["rule"]]

    refused = cli(*arguments, "--out", out, "--resume", "--seed", 1)
    assert (refused.exit_code, "other settings" in refused.stderr) == (2, True)
