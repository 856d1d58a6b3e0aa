"""Imports in fresh processes: each module may be the first, and none starts threads, which a fork loses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import nplex

# With two threads, whatever this machine has: with one, torch starts none.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
EVERY_MODULE = """
import importlib.util, os, pkgutil
import torch

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
import nplex

started = {"nplex": threads() - before}
apart = () if importlib.util.find_spec("triton") else ("nplex.ops.kernels",)
for module in pkgutil.walk_packages(nplex.__path__, "nplex."):
    # What these import beside are other packages, which may start what they like.
    if not module.name.startswith(("nplex.lab", "nplex.cli", "nplex.huggingface", "nplex.__main__", *apart)):
        before = threads()
        importlib.import_module(module.name)
        started[module.name] = threads() - before
print(len(started) > 50, {name: count for name, count in started.items() if count})
"""
CONVERTED_IN_A_FORK = """
import os, signal
import torch
import nplex

child = os.fork()
if child == 0:
    signal.alarm(30)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    nplex.convert_(model, rule=4)
    model(torch.randn(512, 64)).sum().backward()
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""
# A fork for each module. The other packages are imported once before, and so is nplex: with any module of it, it is.
EACH_ALONE = """
import importlib, os, sys, traceback
import accelerate, rich.console, safetensors.torch, scipy, torch, transformers, typer
import nplex

failed = []
for name in sys.stdin.read().split():
    child = os.fork()
    if child == 0:
        try:
            importlib.import_module(name)
        except BaseException:
            print(name, traceback.format_exc(), flush=True)
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(failed)
"""


def printed(program, given=""):
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=ENVIRONMENT, input=given, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stdout.strip() or done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_imports_start_no_threads():
    assert printed(EVERY_MODULE) == "True {}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_after_the_import_converts_and_trains():
    assert printed(CONVERTED_IN_A_FORK) == "0"


@pytest.mark.parametrize("third", [0, *(pytest.param(third, marks=pytest.mark.slow) for third in (1, 2))])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_each_module_can_be_imported_first(third):
    """In whatever order a program imports them: no module needs that another one came before it."""
    files = sorted(Path(nplex.__file__).parent.rglob("*.py"))
    parts = [path.relative_to(files[0].parents[1]).with_suffix("").parts for path in files]
    names = [".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts]
    assert len(names) > 100
    assert "nplex.lab.cli.training" in names
    if not importlib.util.find_spec("triton"):
        names.remove("nplex.ops.kernels")
    assert printed(EACH_ALONE, "\n".join(names[third::3])) == "[]"
