import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "compiled.py"
CASES = 9


def run(*arguments):
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [done.stdout.count(f"ok {way} ") for way in arguments]


def test_torch_compile_fullgraph_gives_the_same_values_and_gradients_and_export_serves_every_batch_size():
    assert run("aot_eager", "export") == [CASES, CASES]


def test_the_formula_for_gpus_compiles_to_the_same_values_and_gradients():
    assert run("as on a GPU", "aot_eager") == [0, CASES]


@pytest.mark.slow
def test_torch_compile_with_inductor():
    assert run("inductor") == [CASES]
