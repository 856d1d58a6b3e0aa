import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"


def output_of(*command):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_two_processes_train_as_one_under_ddp_and_fsdp_with_own_and_shared_rules():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = output_of(PROGRAMS / "distributed.py", port)
    assert found == ["equal ddp own", "equal ddp shared", "equal fsdp own", "equal fsdp shared"]


def test_first_values_tensor_parallelism_and_checkpoints_of_two_processes_are_those_of_one(tmp_path):
    found = output_of(PROGRAMS / "scale.py", "fast", tmp_path)
    assert found == ["placements 2", "first_values 2", "tensor_parallel 2", "evaluation 2", "saved 2", "read 1"]


@pytest.mark.slow
def test_four_processes_shard_split_recompute_and_save_as_one(tmp_path):
    found = output_of(PROGRAMS / "scale.py", "slow", tmp_path)
    assert [name for name in found if name.endswith(" 4")] == [
        "placements 4", "fsdp 4", "first_values 4", "tensor_parallel 4", "layouts 4", "refusals 4", "hybrid 4",
        "two_dimensions 4", "recomputed 4", "saved 4",
    ]  # fmt: skip
    assert [name for name in found if not name.endswith(" 4")] == ["read 2", "layouts 2", "read 1"]
