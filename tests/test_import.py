"""What `import nplex` may not do, in fresh processes: start threads, which a fork loses and then waits for."""

import os
import subprocess
import sys

import pytest

# With two threads, whatever this machine has: with one, torch starts none.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
EVERY_MODULE = """
import importlib, os, pkgutil
import torch

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
import nplex

started = {"nplex": threads() - before}
for module in pkgutil.walk_packages(nplex.__path__, "nplex."):
    # What these import beside are other packages, which may start what they like.
    if not module.name.startswith(("nplex.lab", "nplex.cli", "nplex.huggingface", "nplex.__main__")):
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


def printed(program):
    done = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.strip() or done.stderr


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in /proc")
def test_imports_start_no_threads():
    assert printed(EVERY_MODULE) == "True {}"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_fork_after_the_import_converts_and_trains():
    assert printed(CONVERTED_IN_A_FORK) == "0"
