"""The search for a rule: on functions whose best rules are known."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import tune_cases
from typer.testing import CliRunner

import nplex
from nplex.cli import app, spread
from nplex.lab.tuning import Budget, Candidate, Goals, Measured, Space, recovery, tune, turns
from nplex.lab.tuning import storage as storage_of_tune
from nplex.lab.tuning.front import front_of, unbeaten
from nplex.lab.tuning.measured import call
from nplex.lab.tuning.records import Record, is_hopeless, records
from nplex.lab.tuning.recovery import ask_for, recover, release_ended
from nplex.lab.tuning.space import DENSE, rule_text
from nplex.lab.tuning.storage import Storage, without_password
from nplex.lab.tuning.turns import wait_for_turn
from nplex.lab.tuning.worker import Job, Worker, begin

pytest.importorskip("optuna", reason="needs nplex[search]")

SMALL = Space(n=(2, 4, 8), ranks=("full", "generic"))
TWO = Goals(("size", "quality"))
TESTS = Path(tune_cases.__file__).parent


def record(number, rule, *, state="complete", history=(), measured=None, error=None):
    return Record(number, state, Candidate(rule), tuple(history), measured, error, False, False, "")


def test_dense_is_first_and_every_rule_is_once():
    space = Space()
    assert [c.rule for c in space.start] == ["dense", "2", "4", "8"]
    rules = [c.rule for c in space.points]
    assert rules[0] == "dense"
    assert len(rules) == len(set(rules)) == 27  # n = 2 has one rank, n = 3 three, and full
    assert {rule_text(4, level) for level in ("full", "generic", "between", "n")} <= set(rules)


def test_one_stands_for_dense_and_algebras_are_tried():
    space = Space(n=(1, 2), ranks=("full",), sharing=(False, True), algebras=("quaternion",))
    keys = {c.key for c in space.points}
    assert keys == {"dense", "2", "2 shared", "quaternion", "quaternion shared"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": (0,)}, "n must be numbers from 1 to 256, got 0"),
        ({"ranks": ("half",)}, "ranks must be some of n, between, generic, full; got 'half'"),
        ({"algebras": ("4",)}, "algebras must be names"),
        ({"algebras": ("quaternoin",)}, "a rule is dense"),
        ({"n": (1,)}, "nothing to compare"),
    ],
)
def test_a_wrong_space_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Space(**wrong)


@pytest.mark.parametrize(("rule", "shared"), [("4", False), ("4:7", True), ("quaternion", False)])
def test_the_line_of_code_converts(rule, shared):
    model = torch.nn.TransformerEncoderLayer(64, 4)
    exec(Candidate(rule, shared).code, {"nplex": nplex, "model": model})
    assert isinstance(model.linear1, nplex.nn.Linear)
    assert model.linear1.rule.n == 4
    assert (model.linear1.rule is model.linear2.rule) == shared


def test_the_whole_space_gives_the_known_front(tmp_path):
    front = tune(tune_cases.known, folder=tmp_path, space=SMALL, budget=Budget(trials=100), goals=TWO)
    assert {row.candidate.rule for row in front.rows} == {c.rule for c in SMALL.points}
    assert {row.candidate.rule for row in front.rows if row.front} == {"4", "8"}
    assert front.recommended.candidate.rule == "4"
    assert "nplex.convert_(model, rule=4)" in (tmp_path / "tune.md").read_text("utf-8")
    data = json.loads((tmp_path / "tune.json").read_text("utf-8"))
    assert data["recommended"]["rule"] == "4"
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_goals_decide_the_front():
    measured = {
        Candidate("a"): Measured(1.0, 10, 5.0),
        Candidate("b"): Measured(2.0, 20, 5.0),
        Candidate("c"): Measured(2.0, 30, 1.0),
        Candidate("d"): Measured(1.5, 30, 1.0),
    }
    named = {goals: {c.rule for c in unbeaten(measured, Goals(goals))} for goals in GOALS}
    assert named == {GOALS[0]: {"a", "b"}, GOALS[1]: {"c"}, GOALS[2]: {"a", "b", "c"}}
    assert {c.rule for c in unbeaten(measured, Goals(("size", "quality"), lower=True))} == {"a"}


GOALS = [("size", "quality"), ("quality", "speed"), ("size", "quality", "speed")]


@pytest.mark.parametrize(
    ("goals", "rule"),
    [
        (Goals(("size", "quality"), margin=2.0), "8"),
        (Goals(("size", "quality"), margin=1.0), "4"),
        (Goals(("quality", "speed")), "2"),
        (Goals(("quality",)), "2"),
    ],
)
def test_the_recommended_rule_follows_the_goals(goals, rule):
    rows = [
        record(0, "dense", measured=Measured(90.0, 100, 3.0, 89.5, 90.5)),
        record(1, "2", measured=Measured(90.2, 50, 2.0)),
        record(2, "4", measured=Measured(89.6, 25, 2.5)),
        record(3, "8", measured=Measured(88.5, 12, 1.0)),
    ]
    assert front_of(rows, "t", goals, "", {}).recommended.candidate.rule == rule


def test_nothing_is_recommended_without_dense():
    front = front_of([record(0, "2", measured=Measured(1.0, 1, 1.0))], "t", Goals(), "", {})
    assert front.recommended is None
    assert "dense is not measured yet" in front.advice()


def test_a_plain_number_is_enough(tmp_path):
    front = tune(tune_cases.plain, folder=tmp_path, space=SMALL, budget=Budget(trials=4), goals=Goals(margin=0.6))
    four = next(row for row in front.rows if row.candidate.rule == "4")
    assert four.measured.parameters == 4 * 256**2 + 64
    assert four.measured.seconds >= 0
    assert front.recommended.candidate.rule == "2"


def test_a_second_call_measures_only_what_is_new(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("NPLEX_TEST_CALLS", str(calls))
    for trials in (2, 2, 4, 50):
        tune(tune_cases.noted, folder=tmp_path / "out", space=SMALL, budget=Budget(trials=trials), goals=TWO)
        rules = [line.split()[0] for line in calls.read_text().splitlines()]
        assert len(rules) == len(set(rules)) == min(trials, len(SMALL.points))
    assert rules[0] == "dense"


def test_two_processes_measure_each_rule_once(tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    monkeypatch.setenv("NPLEX_TEST_CALLS", str(calls))
    front = tune(
        tune_cases.noted, folder=tmp_path / "out", space=SMALL, budget=Budget(trials=20), goals=TWO, processes=2
    )
    rules, workers = zip(*(line.split() for line in calls.read_text().splitlines()), strict=True)
    assert sorted(rules) == sorted(c.rule for c in SMALL.points)
    assert str(os.getpid()) not in workers
    assert front.recommended.candidate.rule == "4"


def worker_at(study, folder, calls):
    def objective(rule):
        calls.append(rule)
        return tune_cases.known(rule)

    return Worker(Job(objective, SMALL, Budget(trials=20), TWO, Storage("", ""), folder), study, lambda found: None)


def test_a_rule_asked_for_before_is_left_to_who_began_before(tmp_path):
    """The trial that was asked for has the lower number, but another worker measures the rule by now."""
    optuna = pytest.importorskip("optuna")
    with Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {}).opened(SMALL, TWO) as study:
        ask_for(study, SMALL, Candidate("8"))
        attributes = {"rule": "8", "worker": "elsewhere:1", "ticket": 1, "taken": True}
        study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING, user_attrs=attributes))
        calls = []
        worker_at(study, tmp_path, calls).run()
        assert sorted([*calls, "8"]) == sorted(c.rule for c in SMALL.points)


def test_ctrl_c_while_waiting_is_no_failure_of_the_rule(tmp_path, monkeypatch):
    def interrupted(study, trial, still_wanted):
        raise KeyboardInterrupt

    monkeypatch.setattr("nplex.lab.tuning.worker.wait_for_turn", interrupted)
    with Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {}).opened(SMALL, TWO) as study:
        ask_for(study, SMALL, Candidate("8"))
        with pytest.raises(KeyboardInterrupt):
            worker_at(study, tmp_path, []).run()
        assert [(record.state, record.interrupted) for record in records(study)] == [("fail", True)]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_who_came_later_waits(tmp_path):
    with Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {}).opened(SMALL, TWO) as study:
        first, second = study.ask(), study.ask()
        wait_for_turn(study, second, lambda: pytest.fail("nobody is before"))
        seen = []

        def second_takes():
            seen.append(1)
            second.set_user_attr("taken", True)

        wait_for_turn(study, first, second_takes)
        assert seen == [1]
        assert [record.ticket for record in records(study)] == [2, 1]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_many_who_choose_at_once_choose_one_after_the_other(tmp_path):
    """Four threads, each choosing five times: the time between turn and choice belongs to one of them."""
    inside, most, order = set(), [], random.Random(0)
    pauses = [[0.004 * order.random() for _ in range(5)] for _ in range(4)]

    def choose(study, own):
        for pause in own:
            trial = study.ask()
            wait_for_turn(study, trial, lambda: None)
            inside.add(trial.number)
            most.append(len(inside))
            time.sleep(pause)
            inside.remove(trial.number)
            trial.set_user_attr("taken", True)

    storage = Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {})
    with storage.opened(SMALL, TWO) as study, ThreadPoolExecutor(4) as pool:
        list(pool.map(choose, [study] * 4, pauses))
    assert most == [1] * 20


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_rule_that_was_asked_for_is_begun_by_one_worker(tmp_path):
    """Four connections take forty waiting trials."""
    storage = Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {})
    together = threading.Barrier(4)

    def take(study):
        together.wait()
        return [study.ask().number for _ in range(10)]

    with ExitStack() as opened, ThreadPoolExecutor(4) as pool:
        studies = [opened.enter_context(storage.opened(SMALL, TWO)) for _ in range(4)]
        for _ in range(40):
            ask_for(studies[0], SMALL, Candidate("8"))
        taken = list(pool.map(take, studies))
    assert sorted(number for numbers in taken for number in numbers) == list(range(40))


def test_a_worker_whose_trial_was_taken_for_dead_goes_on(tmp_path):
    """As after a long sleep of the machine: at an epoch, or only at the end, it finds its trial ended."""
    optuna = pytest.importorskip("optuna")
    with Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {}).opened(SMALL, TWO) as study:
        calls = []

        def objective(rule, report):
            calls.append(rule)
            if len(calls) <= 2:
                (running,) = [record.number for record in records(study) if record.state == "running"]
                study.tell(running, state=optuna.trial.TrialState.FAIL)
                recover(study, SMALL)
            if len(calls) == 1:
                report(1.0)
            return tune_cases.known(rule)

        job = Job(objective, SMALL, Budget(trials=20), TWO, Storage("", ""), tmp_path)
        Worker(job, study, lambda found: None).run()
        assert set(calls) == {candidate.rule for candidate in SMALL.points}
        assert len(calls) == len(SMALL.points) + 2
        found = records(study)
        assert [record.error for record in found if record.error] == []
        assert sum(record.lost for record in found) == 2


def test_a_trial_that_was_begun_by_nobody_is_asked_for_again(tmp_path, monkeypatch):
    """Its process was killed before it wrote its name; a trial that has just begun is left alone."""
    with Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {}).opened(SMALL, TWO) as study:
        ask_for(study, SMALL, Candidate("8"))
        study._pop_waiting_trial_id()
        begin(study, SMALL)
        assert [record.state for record in records(study)] == ["running"]
        monkeypatch.setattr(recovery, "NAMELESS", timedelta(0))
        begin(study, SMALL)
        assert [(r.state, r.candidate.rule) for r in records(study)] == [("fail", "8"), ("waiting", "8")]


def test_machines_that_open_a_new_storage_at_once_all_can(tmp_path):
    together = threading.Barrier(4)

    def opened(storage):
        together.wait()
        storage._database(SMALL).engine.dispose()
        return True

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("ignore")
        for turn in range(3):
            storage = Storage.of(f"sqlite:///{tmp_path / f'{turn}.db'}", "t", {})
            assert list(pool.map(opened, [storage] * 4)) == [True] * 4


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_who_waits_does_not_wait_for_a_machine_that_died(tmp_path, monkeypatch):
    monkeypatch.setattr(storage_of_tune, "HEARTBEAT", 1)
    monkeypatch.setattr(storage_of_tune, "GRACE", 1)
    monkeypatch.setattr(turns, "STALE", 0.0)
    with Storage.of(f"sqlite:///{tmp_path / 'tune.db'}", "t", {}).opened(SMALL, TWO) as study:
        first, second = study.ask(), study.ask()
        first.set_user_attr("ticket", 1)
        study._storage.record_heartbeat(first._trial_id)
        wait_for_turn(study, second, lambda: None)
        assert [record.state for record in records(study)][:2] == ["fail", "running"]


def test_two_processes_keep_the_number_of_trials(tmp_path):
    front = tune(tune_cases.known, folder=tmp_path, budget=Budget(trials=5), goals=TWO, processes=2)
    assert len(front.rows) == 5


def test_a_killed_process_is_replaced_and_its_rule_tried_again(tmp_path, monkeypatch):
    monkeypatch.setenv("NPLEX_TEST_CALLS", str(tmp_path / "calls"))
    front = tune(
        tune_cases.dies_once, folder=tmp_path / "out", space=SMALL, budget=Budget(trials=20), goals=TWO, processes=2
    )
    assert (tmp_path / "calls").read_text().split().count("4") == 2
    assert front.recommended.candidate.rule == "4"


def test_a_rule_that_kills_each_process_is_given_up(tmp_path):
    space = Space(n=(2, 4), ranks=("full",))
    front = tune(tune_cases.dies_always, folder=tmp_path, space=space, goals=TWO, processes=2)
    assert [(row.candidate.rule, row.state) for row in front.rows][-1] == ("4", "failed")
    assert "ended 3 times" in front.rows[-1].error


def test_a_rule_that_cannot_win_is_stopped(tmp_path):
    space = Space(n=(4,), ranks=("full", "n"))
    front = tune(tune_cases.slow, folder=tmp_path, space=space, goals=Goals(("quality", "size"), margin=1.0))
    states = {row.candidate.rule: (row.state, row.epochs) for row in front.rows}
    # a rule of low rank is a little smaller, so where size matters nothing larger can stop it
    assert states == {"dense": ("measured", 4), "4": ("measured", 4), "4:4": ("measured", 4)}
    kept = tune(tune_cases.slow, folder=tmp_path / "b", space=space, goals=Goals(("quality",), margin=1.0))
    states = {row.candidate.rule: (row.state, row.epochs) for row in kept.rows}
    assert states["4:4"] == ("stopped", 2)
    assert "stopped after 2" in (tmp_path / "b" / "tune.md").read_text("utf-8")


HIGH, LOW = [(5.0, 1.0), (6.0, 2.0)], [(3.0, 1.5), (4.0, 2.5)]
DENSE_RECORD = record(0, "dense", history=HIGH, measured=Measured(6.0, 100, 2.0, 5.5, 6.5))


@pytest.mark.parametrize(
    ("rule", "history", "goals", "stopped"),
    [
        ("4", LOW, Goals(("quality",)), True),
        ("4", LOW, Goals(("size", "quality")), False),
        ("4", LOW[:1], Goals(("quality",)), False),
        ("4", [LOW[0], HIGH[1]], Goals(("quality",)), False),
        ("4", [(4.6, 1.5), (5.6, 2.5)], Goals(("quality",)), False),
        ("4", LOW, Goals(("quality",), lower=True), False),
        ("4", LOW, Goals(("quality", "speed")), True),
        ("4", [(3.0, 0.5), (4.0, 1.5)], Goals(("quality", "speed")), False),
        ("4", LOW, Goals(("quality",), margin=3.0), False),
    ],
)
def test_when_a_rule_is_hopeless(rule, history, goals, stopped):
    assert is_hopeless(Candidate(rule), history, [DENSE_RECORD], goals) == stopped


def test_a_failing_rule_is_told_and_the_others_go_on(tmp_path):
    space = Space(n=(2, 5), ranks=("full",))
    front = tune(tune_cases.refuses_five, folder=tmp_path, space=space)
    assert front.rows[-1].error == "ValueError: width 128 cannot have n = 5"
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
        tune(objective, folder=tmp_path, space=SMALL)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        call(lambda rule: float("nan"), DENSE, lambda score, seconds=None: None)


def test_wrong_calls_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must take an argument `shared`"):
        tune(tune_cases.known, folder=tmp_path, space=Space(sharing=(False, True)))
    with pytest.raises(ValueError, match="can be imported by name"):
        tune(lambda rule: 1.0, folder=tmp_path, processes=2)
    with pytest.raises(ValueError, match="goals must be some of"):
        Goals(("beauty",))
    with pytest.raises(ValueError, match="must hold quality"):
        Goals(("size",))
    with pytest.raises(ValueError, match="1 trial or more"):
        Budget(trials=0)


def test_a_folder_with_another_search_is_refused(tmp_path):
    tune(tune_cases.known, folder=tmp_path, space=SMALL, budget=Budget(trials=2))
    with pytest.raises(ValueError, match="other settings"):
        tune(tune_cases.known, folder=tmp_path, budget=Budget(trials=2))


def test_two_folders_share_a_storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = tune(tune_cases.known, folder=tmp_path / "a", space=SMALL, budget=Budget(trials=2), storage=url)
    second = tune(tune_cases.known, folder=tmp_path / "b", space=SMALL, budget=Budget(trials=3), storage=url)
    assert (len(first.rows), len(second.rows)) == (2, 3)


@pytest.mark.parametrize("url", ["nowhere", "mysterydb://a", "sqlite:////nowhere/at/all/x.db"])
def test_a_storage_that_cannot_be_opened_is_refused(tmp_path, url):
    with pytest.raises(ValueError, match="cannot be opened, expected a database URL"):
        tune(tune_cases.known, folder=tmp_path, storage=url)


def test_passwords_are_not_told():
    assert without_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_trials_of_a_process_that_is_no_more_are_released(tmp_path):
    import socket

    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    kept = Storage.of(f"sqlite:///{tmp_path / 'x.db'}", "t", {})
    with kept.opened(SMALL, TWO) as study:
        trial = study.ask()
        trial.set_user_attr("worker", f"{socket.gethostname()}:{done.pid}")
        release_ended(study)
        assert study.trials[0].state.name == "FAIL"


def cli(*arguments):
    return CliRunner().invoke(app, spread([str(argument) for argument in arguments]), prog_name="nplex")


def test_the_verb_prints_table_and_line(tmp_path):
    arguments = ("tune", "tune_cases:known", "--n", 2, 4, "--rank", "full", "--goal", "size", "quality")
    result = cli(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "nplex.convert_(model, rule=4)" in result.stdout
    assert "dense: score 90" in result.stderr
    refused = cli(*arguments, "--out", tmp_path / "out")
    assert (refused.exit_code, "--resume goes on" in refused.stderr) == (2, True)
    assert cli(*arguments, "--out", tmp_path / "out", "--resume").exit_code == 0
    assert cli(*arguments, "--out", tmp_path / "out", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing:here"], "'nothing:here' names no function"),
        (["tune_cases:nothing"], "names no function, expected my_module:my_function"),
        (["tune_cases:number"], "must be a function, got a int"),
        (["fly"], "there is no task 'fly'"),
        (["tune_cases:known", "--n", "x"], "n must be numbers, or a range as 2..8; got 'x'"),
        (["tune_cases:known", "--n", "999999999"], "n must be numbers from 1 to 256"),
        (["tune_cases:known", "--budget", "soon"], "must be a time as 90s, 30m or 2h; got 'soon'"),
        (["tune_cases:known", "--sharing", "some"], "--sharing must be no, yes or both"),
        (["tune_cases:known", "--goal", "fun"], "goals must be some of size, quality, speed; got 'fun'"),
        (["tune_cases:known", "--epochs", "3"], "--epochs is for tasks"),
        (["tune_cases:known", "--storage", "x://y"], "cannot be opened"),
        (["tune_cases:refuses_all"], "dense could not be measured"),
        (["agreement", "--lower"], "--lower is for functions"),
        (["agreement", "--n", "2", "200"], "n = 200"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, arguments, message):
    result = cli("tune", *arguments, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith("nplex: ")
    assert message in last
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("processes", [1, 2])
def test_control_c_stops_all_and_says_how_to_go_on(tmp_path, processes):
    calls = tmp_path / "calls"
    env = os.environ | {"NPLEX_TEST_CALLS": str(calls)}
    command = [
        sys.executable, "-m", "nplex", "tune", "tune_cases:waits", "--n", "2", "4", "--rank", "full", "--processes",
        str(processes), "--out", tmp_path / "out",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=TESTS, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a suite in the background ignores it
    )  # fmt: skip
    until = time.monotonic() + 300
    try:
        while not (calls.exists() and len(calls.read_text().splitlines()) > processes):
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert f"--resume --out {tmp_path / 'out'}" in said
    assert "Traceback" not in said
    workers = {int(line.split()[1]) for line in calls.read_text().splitlines()}
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    assert json.loads((tmp_path / "out" / "tune.json").read_text("utf-8"))["rows"][0]["rule"] == "dense"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A tiny data folder of the agreement task."""
    folder = tmp_path_factory.mktemp("data")
    lines = "VBZ\tthe key\tmade\nVBP\tthe keys\tmade\n"
    for part, count in {"train": 64, "dev": 8, "test": 16}.items():
        (folder / f"{part}.tsv").write_text(lines * (count // 2))
    return folder


def test_a_task_is_trained_with_each_rule_once(data, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "tune",
        "agreement",
        "--data",
        data,
        "--epochs",
        1,
        "--n",
        2,
        4,
        "--rank",
        "full",
        "--sharing",
        "both",
    ]
    first = cli(*arguments, "--trials", 2, "--out", out)
    assert first.exit_code == 0, first.output
    before = (out / "dense-seed0" / "model.safetensors").stat().st_mtime_ns
    more = cli(*arguments, "--trials", 9, "--out", out, "--resume")
    assert more.exit_code == 0, more.output
    rows = {
        row["rule"] + " shared" * row["shared"]: row for row in json.loads((out / "tune.json").read_text())["rows"]
    }
    assert set(rows) == {"dense", "2", "4", "2 shared", "4 shared"}
    assert rows["4 shared"]["measured"]["parameters"] < rows["4"]["measured"]["parameters"]
    assert (out / "dense-seed0" / "model.safetensors").stat().st_mtime_ns == before
    refused = cli(*arguments, "--out", out, "--resume", "--seed", 1)
    assert (refused.exit_code, "other settings" in refused.stderr) == (2, True)
    assert cli(*arguments, "--trials", 1, "--out", out, "--force").exit_code == 0
