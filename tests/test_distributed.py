import socket
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parent / "programs" / "distributed.py"


def test_two_processes_train_as_one_under_ddp_and_fsdp_with_own_and_shared_rules():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run([sys.executable, PROGRAM, port], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["equal ddp own", "equal ddp shared", "equal fsdp own", "equal fsdp shared"]
