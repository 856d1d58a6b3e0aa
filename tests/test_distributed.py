import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROGRAMS.parent), os.environ.get("PYTHONPATH", "")])}
PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text("utf-8")
COMMANDS = [line for code in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in code.splitlines()]
SCRIPTS = {name: code for code, name in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", PAGE, re.DOTALL)}
HYBRID = re.search(r"```python\n(inside = .*?)```", PAGE, re.DOTALL)[1]


def output_of(*command):
    done = subprocess.run(
        [sys.executable, *command], env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_two_processes_train_as_one_under_ddp_and_fsdp_with_own_and_shared_rules():
    found = output_of(PROGRAMS / "distributed.py", free_port())
    assert found == ["equal ddp own", "equal ddp shared", "equal fsdp own", "equal fsdp shared"]


def test_first_values_tensor_parallelism_and_checkpoints_of_two_processes_are_those_of_one(tmp_path):
    found = output_of(PROGRAMS / "scale.py", "fast", tmp_path)
    assert (len(found), found[0], found[-1]) == (7, "evaluation 2", "read 1")


@pytest.mark.slow
def test_four_processes_shard_split_recompute_and_save_as_one(tmp_path):
    found = output_of(PROGRAMS / "scale.py", "slow", tmp_path)
    assert (len(found), found[0], found[-1]) == (14, "fsdp 4", "read 1")


@pytest.fixture
def folder(tmp_path):
    """The page's scripts in an empty folder."""
    assert set(SCRIPTS) == {"train.py", "split.py"}
    for name, code in SCRIPTS.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def started(command, folder, processes):
    """A command of the page in the folder, with fewer processes, and one machine in the place of several."""
    switches, _, arguments = command.rpartition("torchrun ")
    arguments = re.sub(r"--nproc-per-node \d+", f"--nproc-per-node {processes}", arguments)
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(each.split("=") for each in switches.split())
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *arguments.split()], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(*started):
    ends = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * len(started), ends
    return "".join(output for output, _ in ends)


@pytest.mark.slow
def test_the_commands_and_scripts_of_the_page_run(folder):
    train, split, machines, again = [each for each in COMMANDS if each.endswith(".py")]
    assert "parameters, loss" in finished(started(train, folder, 2))
    assert "1,024 of 4,096 numbers" in finished(started(split, folder, 4))
    endpoint = machines.replace("host1:29500", f"localhost:{free_port()}")
    assert "parameters, loss" in finished(*(started(endpoint, folder, 1) for _ in range(2)))
    assert "parameters, loss" in finished(started(again, folder, 3))  # with the checkpoint of two
    script = SCRIPTS["train.py"]
    usual = re.search(r"^mesh = .*\n", script, re.MULTILINE)[0]
    (folder / "train.py").write_text(script.replace(usual, HYBRID))
    endpoint = machines.replace("host1:29500", f"localhost:{free_port()}")
    assert "parameters, loss" in finished(*(started(endpoint, folder, 2) for _ in range(2)))


@pytest.mark.slow
def test_the_verbs_of_the_page_run_on_several_processes_and_machines(folder):
    (verb,) = [each for each in COMMANDS if each.startswith("torchrun") and "-m nplex" in each]
    assert "majority" in finished(started(f"{verb} --epochs 1", folder, 2))
    (machines,) = [each for each in COMMANDS if "host1" in each]
    machines = machines.replace("host1:29500", f"localhost:{free_port()}")
    verb = machines.replace("train.py", "-m nplex run agreement --epochs 1 --resume --out runs/machines")
    assert "majority" in finished(*(started(verb, folder, 1) for _ in range(2)))
