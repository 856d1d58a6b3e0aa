"""Killed at any moment and started again, a run ends in the bits of one that was never stopped."""

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

from nplex.files import read_tensors

TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "5",
]  # fmt: skip
PROGRAM = Path(__file__).parent / "programs" / "trained.py"


def start(folder, keep):
    return subprocess.Popen([sys.executable, PROGRAM, folder, keep, "0.005"], stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("keep", ["best", "average"])
def test_killed_runs_end_in_the_same_bits(tmp_path, keep):
    whole, folder, rng, kills = tmp_path / "whole", tmp_path / "broken", random.Random(0), 0
    unbroken = start(whole, keep)
    for _ in range(12):
        process = start(folder, keep)
        began, wanted = time.monotonic(), 0.02 + 0.35 * rng.random()
        while process.poll() is None and not (folder / "log.jsonl").exists() and time.monotonic() - began < 30:
            time.sleep(0.01)  # until torch is loaded
        try:
            process.wait(wanted if kills < 2 else None)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        said = process.stderr.read()
        process.stderr.close()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        for path in folder.glob("*.safetensors"):
            read_tensors(path)  # whole, whatever the moment
    assert kills > 0
    assert (unbroken.communicate()[1], unbroken.returncode) == ("", 0)
    ends, logs = ([(each / name) for each in (whole, folder)] for name in ("final.safetensors", "log.jsonl"))
    assert len({path.read_bytes() for path in ends}) == 1
    assert len({str(epochs(path.read_text())) for path in logs}) == 1


def epochs(text):
    """What is logged after each pass, which no clock decides."""
    return [line for line in map(json.loads, text.splitlines()) if "error" in line]


@pytest.mark.slow
def test_two_processes_train_as_one_and_outlive_a_lost_worker(tmp_path):
    alone = tmp_path / "alone"
    subprocess.run([sys.executable, PROGRAM, alone, "last"], check=True, capture_output=True)
    for name, lose_at in (("two", 0), ("lost", 40)):
        done = subprocess.run(
            [*TORCHRUN, PROGRAM, tmp_path / name, "last"], env=os.environ | {"LOSE_AT": str(lose_at)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("exitcode: -9" in done.stderr) == (lose_at > 0)
        compare(alone, tmp_path / name)


def compare(alone, other):
    (one, head), (two, other_head) = (read_tensors(folder / "final.safetensors") for folder in (alone, other))
    assert head == other_head
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5)
