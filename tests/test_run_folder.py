"""A run folder that a kill, another process or a damage left goes on, starts anew, or says in a line why not."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from nplex.files import read_tensors
from nplex.lab import experiment
from nplex.lab.checkpoint import read_sealed_tensors, write_sealed_tensors
from nplex.lab.recipes.language_modelling import language
from nplex.lab.reporting import report, rule_tables
from nplex.lab.reporting.read import finished_runs
from nplex.lab.run_folder import LOCK, RunFolder, owned
from nplex.lab.summary import summarise
from nplex.lab.train import Interrupted, State, rules
from nplex.lab.train.log import lines

HUGE = 10**30


class Killed(BaseException):
    """What a SIGKILL would be, if a program could go on after it."""


class Begun(Exception):
    """The first step is done."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A recipe that trains in no time, and its data."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("train", "dev", "test"):
        (folder / f"{part}.txt").write_text("the cat saw the dog\n" * 12)
    recipe = language("2")
    schedule = replace(recipe.schedule, epochs=2, batch_size=8, checkpoint_every=1)
    recipe = replace(recipe, width=8, feed_forward=8, heads=1, layers=1, length=16, schedule=schedule)
    return recipe, recipe.load(folder)


class Operations:
    """Counts what touches a folder; at a given one, and at all after it, the process is dead."""

    def __init__(self):
        self.folder, self.count, self.last = None, 0, 0
        sys.addaudithook(self)  # for good: Python takes none away

    def __call__(self, event, arguments):
        if self.folder is None or event not in (
            "open",
            "os.mkdir",
            "os.rename",
            "os.remove",
            "os.rmdir",
            "os.listdir",
        ):
            return
        if not any(isinstance(each, str | os.PathLike) and self.folder in str(each) for each in arguments):
            return
        self.count += 1
        if self.last and self.count >= self.last:
            raise Killed


OPERATIONS = Operations()


def begin(tiny, folder, *, verb="run", last=0, **options):
    """Starts a run or a comparison and leaves it after its first step; gives how often it touched the folder."""

    def step(label, state, steps):
        raise Begun

    recipe, data = tiny
    OPERATIONS.folder, OPERATIONS.count, OPERATIONS.last = str(folder), 0, last
    try:
        RunFolder(folder, **options).open()
        if verb == "run":
            experiment.run(recipe, data, 0, folder, step)
        else:
            experiment.compare(recipe, ["2"], [0], data, folder, step)
    except (Killed, Begun):
        pass
    finally:
        OPERATIONS.folder = None
    return OPERATIONS.count


@pytest.mark.parametrize(("verb", "each"), [("run", 1), ("compare", 3)])
def test_a_kill_at_any_file_operation_of_the_beginning_leaves_a_folder_that_goes_on_and_starts_anew(
    tiny, tmp_path, monkeypatch, verb, each
):
    """A new folder, and one whose content --force is deleting; of a comparison each third operation."""
    built = tiny[0].build(tiny[1])
    monkeypatch.setattr(type(tiny[0]), "build", lambda recipe, data: copy.deepcopy(built))  # as often as it begins
    whole = tmp_path / "whole"
    operations = begin(tiny, whole, verb=verb)
    assert operations > 5
    forced = begin(tiny, shutil.copytree(whole, tmp_path / "f"), verb=verb, force=True)
    cases = [(None, {}, last) for last in range(1, operations + 1, each)]
    cases += [(whole, {"force": True}, last) for last in range(1, forced + 1, each)]
    seen = set()
    for number, (before, options, last) in enumerate(cases):
        folder = tmp_path / str(number)
        if before is not None:
            shutil.copytree(before, folder)
        begin(tiny, folder, verb=verb, last=last, **options)
        left = (bool(options), *sorted(re.sub(r"\.\w{8}\.part", ".part", str(p)) for p in folder.rglob("*")))
        left = tuple(str(each).replace(str(folder), "") for each in left)
        if left in seen:
            continue
        seen.add(left)
        for way in ({"resume": True}, {"force": True}):
            copied = tmp_path / f"{number}-{next(iter(way))}"
            if folder.exists():
                shutil.copytree(folder, copied)
            begin(tiny, copied, verb=verb, **way)
            assert list(copied.rglob("log.jsonl")) or list(copied.rglob("rules.safetensors")), (before, last, way)
            assert not list(copied.rglob("*.part"))
            shutil.rmtree(copied)


def test_a_folder_in_use_is_refused_by_name_and_free_after_a_kill(tiny, tmp_path):
    recipe, data = tiny
    folder = tmp_path / "run"
    begin(tiny, folder)
    program = (
        "import sys, time; from pathlib import Path; from nplex.lab.run_folder import owned\n"
        "with owned(Path(sys.argv[1])): print('mine', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "mine\n"
        before = sorted(path.name for path in folder.iterdir())
        said = rf"{folder} is in use by process {other.pid} on .*; wait for its end, or take another --out"
        for use in (
            lambda: experiment.run(recipe, data, 0, folder),
            lambda: RunFolder(folder, force=True).open(),
        ):
            with pytest.raises(BlockingIOError, match=said):
                use()
        assert sorted(path.name for path in folder.iterdir()) == before
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
    assert (folder / LOCK).exists()
    assert experiment.run(recipe, data, 0, folder)["seed"] == 0
    assert not (folder / LOCK).exists()


def test_a_comparison_that_deletes_and_its_run_in_another_process_exclude_each_other(tiny, tmp_path):
    folder = tmp_path / "compared"
    begin(tiny, folder, verb="compare")
    with owned(folder / "2-seed0"), pytest.raises(BlockingIOError, match="2-seed0 is in use by process"):
        RunFolder(folder, force=True).open()


def test_only_the_first_of_several_processes_locks(tiny, tmp_path, monkeypatch):
    begin(tiny, tmp_path)
    monkeypatch.setenv("RANK", "1")
    with owned(tmp_path), pytest.raises(Begun):
        experiment.run(*tiny, 0, tmp_path, lambda *told: (_ for _ in ()).throw(Begun))


def test_parts_of_others_are_left_alone(tmp_path):
    mine = tmp_path / "thesis.tex.part"
    mine.write_text("mine")
    with owned(tmp_path):
        pass
    assert mine.read_text() == "mine"
    with pytest.raises(FileExistsError, match="is not a folder of nplex runs"):
        RunFolder(tmp_path, force=True).open()


@pytest.fixture(scope="module")
def broken(tiny, tmp_path_factory):
    """A run that was stopped in its second pass."""
    folder = tmp_path_factory.mktemp("broken") / "run"

    def stop(label, state, steps):
        if state.epoch == 1 and state.batch == 1:
            raise Interrupted

    with pytest.raises(Interrupted):
        experiment.run(*tiny, 0, folder, stop)
    return folder


WRONG = [
    *({key: value} for key in ("step", "epoch", "batch", "tokens", "items", "best_epoch")
      for value in (-1, True, 1.0, HUGE, None, "1", [])),
    *({"seconds": value} for value in (-1.0, float("nan"), float("inf"), True, "1")),
    *({key: value} for key in ("loss_sum", "best") for value in (True, "1", [], {})),
    {"best": None}, {"best": 3.5}, {"best_epoch": 0}, {"batch": 10_000}, {"batch": 500, "step": 500 + 4},
    {"step": 0}, {"step": 99}, {"epoch": 0}, {"epoch": 2}, {"epoch": 7},
    *({"history": value} for value in (None, {}, [], [3], [{"epoch": 1}], [{"epoch": 2, "loss": 1.0}])),
    {"other": 1},
]  # fmt: skip


def refused_alone(change, state, main):
    """Whether a state is refused as it is read, before it is compared with the rest of its checkpoint."""
    try:
        State.read(state | change, main)
    except ValueError:
        return True
    return False


def test_a_state_of_wrong_kinds_or_ranges_is_refused(tiny, broken, tmp_path):
    """With a right checksum: somebody wrote it on purpose, or an older version. A run reads one of each kind."""
    main, state = tiny[0].task(tiny[1]).main, read_tensors(broken / "checkpoint.safetensors")[1]["state"]
    alone = [change for change in WRONG if refused_alone(change, state, main)]
    others = [change for change in WRONG if change not in alone]
    assert len(alone) > len(WRONG) / 2
    for number, change in enumerate([*alone[::12], *others]):
        refuses(tiny, broken, tmp_path / str(number), change)


def refuses(tiny, broken, place, change):
    folder = shutil.copytree(broken, place)
    path = folder / "checkpoint.safetensors"
    tensors, header = read_sealed_tensors(path)
    write_sealed_tensors(path, tensors, header | {"state": header["state"] | change})
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors is damaged \(.*delete it and run again"):
        experiment.run(*tiny, 0, folder)


def test_every_key_of_the_state_must_be_there(tiny, broken):
    main = tiny[0].task(tiny[1]).main
    state = read_tensors(broken / "checkpoint.safetensors")[1]["state"]
    assert asdict(State.read(state, main)) == state
    for key in state:
        with pytest.raises(ValueError, match="other keys"):
            State.read({k: v for k, v in state.items() if k != key}, main)


def test_a_cut_line_of_a_log_is_dropped_and_a_wrong_one_refused(tmp_path):
    path, right = tmp_path / "log.jsonl", '{"step": 1, "epoch": 1, "loss": 2.5}\n'
    path.write_text(right + '{"step": 2, "epo')
    assert lines(path) == [{"step": 1, "epoch": 1, "loss": 2.5}]
    for wrong in (
        "", "\0", "3", "[]", "{}", '{"step": -1, "epoch": 1, "loss": 1}', '{"step": 1.5, "epoch": 1, "loss": 1}',
        '{"step": true, "epoch": 1, "loss": 1}', '{"step": 1, "epoch": 1, "loss": "1"}', '{"step": 1, "loss": 1}',
        f'{{"step": {HUGE}, "epoch": 1, "loss": 1}}', "9" * 5000, "[" * 100_000,
    ):  # fmt: skip
        path.write_text(f"{right}{wrong}\n{right}")
        with pytest.raises(ValueError, match=r"log\.jsonl, line 2, is damaged .*delete the file to go on"):
            lines(path)


def test_what_looks_draws_no_random_numbers(tiny, tmp_path, monkeypatch):
    """Torch's and numpy's generators stand where they stood; Python's is the annotations' checker's here."""
    pytest.importorskip("plotly")
    monkeypatch.setattr(rule_tables, "MOST", 1)  # a second each
    recipe, data = tiny
    experiment.compare(recipe, ["2"], [0], data, tmp_path / "out")
    model = recipe.build(data)
    for look in (
        lambda: report(tmp_path / "out", tmp_path / "page.html", lambda done, of: None),
        lambda: summarise([run.result for run in finished_runs(tmp_path / "out")], ("", {})).markdown(),
        lambda: experiment.layer_parameters(model, recipe.converted),
        lambda: experiment.fingerprint(data),
        lambda: recipe.baseline(data),
        lambda: experiment.run(recipe, data, 0, tmp_path / "out" / "2-seed0"),
        lambda: rules.record(tmp_path / "out" / "2-seed0", model, 3),
        lambda: RunFolder(tmp_path / "out", force=True).open(),
    ):
        before = torch.get_rng_state(), str(np.random.get_state())
        look()
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == str(np.random.get_state())
