"""nplex on a CUDA device that is not there: types, devices, waits, and what is kept for backward.

Tensors there have no numbers, so this says nothing about values; programs/fake_cuda.py says how.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from layer_cases import LAYERS

from nplex import nn
from nplex.nn import LearnedRule
from nplex.ops import sums

PROGRAMS = Path(__file__).parent / "programs"
# Their operators exist for real CUDA tensors alone, in torch's layers and in ours.
UNKNOWN = {"GRU", "GRUCell"}


def run(program, folder):
    """The JSON lines that a program prints, in a process where torch finds the device."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, to compile the device that is not there")
    environment = os.environ | {"NPLEX_FAKE_CUDA": str(folder), "XDG_CACHE_HOME": str(folder)}
    command = [sys.executable, PROGRAMS / program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="session")
def guard(tmp_path_factory):
    """A folder for the compiled library."""
    return tmp_path_factory.mktemp("fake-cuda")


@pytest.fixture(scope="session")
def calls(guard):
    """What every call of every layer did, beside torch's."""
    return run("cuda_layers.py", guard)


def told(call):
    return f"{call['name']}, rule {call['rule']}, {call['dtype']}, autocast {call['autocast']}"


def test_all_layers_were_called(calls):
    assert {call["name"] for call in calls} > set(LAYERS)
    assert {call["name"] for call in calls if "skipped" in call} <= UNKNOWN


def test_outputs_have_the_type_of_torchs_layer_for_every_number_of_tokens(calls):
    wrong = {told(c): (c["types"], c["theirs"]["types"]) for c in calls if "types" in c}
    assert {name: types for name, types in wrong.items() if types[0] != types[1]} == {}


def test_gradients_have_the_type_of_the_parameters(calls):
    assert [told(c) for c in calls if "types" in c and c["grads"] != [c["dtype"]]] == []


@pytest.mark.parametrize("what", ["waits", "strays"])
def test_nothing_waits_for_the_device_or_meets_a_cpu_tensor(calls, what):
    assert {told(c): c[what] for c in calls if "types" in c and set(c[what]) - set(c["theirs"][what])} == {}


def test_no_more_memory_than_dense_while_training(calls):
    """Bytes of input, parameters and what is kept, of torch's: 1024 -> 4096, 8192 tokens, bfloat16."""
    share = {c["rule"]: c["numbers"] / c["theirs"]["numbers"] for c in calls if c["name"] == "large"}
    assert share.pop("4:None") < 1.1  # the weight and the components
    assert list(share) == ["4:7", "4:4", "8:24"]
    assert max(share.values()) < 1


def test_auto_is_never_slower_than_the_dense_method_by_the_operators_that_it_starts(guard):
    """The plan's own estimate is not asked: programs/fake_cuda.py counts bytes, operations and starts for an H100."""
    lines = run("cuda_costs.py", guard)
    assert {line["method"] for line in lines} >= {"dense", "bilinear", "components_first"}
    assert [line for line in lines if line["share"] > 1.05] == []


def test_compiled_mixing_merges_with_its_neighbours(guard):
    """LayerNorm, two layers 4096 wide, GELU, residual; 16,384 tokens: block products are all that libraries compute.

    Seconds of a training step are arithmetic, of what Inductor would start on an H100.
    """
    forms = {(line["form"], line["n"], line["rank"]): line for line in run("cuda_kernels.py", guard)}
    for n, rank, most in ((4, 7, 0.85), (4, 4, 0.6), (8, 8, 0.5)):
        dense, old, new = (forms[form, n, rank] for form in ("dense", "matmuls", "token_major"))
        assert new["forward"]["calls"] == dense["forward"]["calls"] == 2
        assert old["forward"]["calls"] == 8
        assert new["backward"]["calls"] == 10 < old["backward"]["calls"]
        assert new["saved"] < old["saved"]
        seconds = [sum(form[way]["seconds"] for way in ("forward", "backward")) for form in (new, dense)]
        assert seconds[0] < most * seconds[1]


def test_the_program_for_a_real_gpu_runs_dry(tmp_path):
    program = Path(__file__).parents[1] / "benchmarks" / "gpu.py"
    command = [sys.executable, program, "--dry", "--limit", "120", "--out", tmp_path]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert (ran.returncode, ran.stderr) == (0, "")
    written = json.loads((tmp_path / "gpu-dry-run-on-a-cpu.json").read_text("utf-8"))
    parts = {row["part"] for row in written["rows"]}
    ordinary = {"ceilings", "values", "layers", "formulas", "blocks", "few_rows", "few_tokens", "captured"}
    assert parts == ordinary | {"kernels"}
    wrong = {row["case"]: row["measured"] for row in written["rows"] if row["part"] == "values"}
    assert max(wrong.values()) < 1e-4
    text = (tmp_path / "gpu-dry-run-on-a-cpu.md").read_text("utf-8")
    assert "## layers" in text
    assert "failed" not in text


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4100, 1), (700, 2050), (1000, 64)])
def test_sums_in_groups(shape):
    left, right = torch.randn(3, *shape, dtype=torch.float64), torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(sums.in_groups(left, right), left.flatten(1) @ right.flatten(1).mT)
    found = sums.in_groups(left.half(), right.half())
    assert found.dtype == torch.float32
    assert torch.equal(found, sums.in_groups(left.half(), right.half()))


@pytest.mark.parametrize("method", ["dense", "bilinear"])
def test_float16_gradients_of_the_rule_are_finite_where_torchs_are(method):
    layer = nn.Linear(256, 256, rule=LearnedRule(4, rank=7), method=method)
    twin, x = layer.to_torch(), torch.randn(2048, 256)
    grad = twin(x).detach()
    exact = torch.autograd.grad(twin(x), twin.weight, grad)[0]
    grad *= 1e4 / exact.abs().max()
    for module in (twin, layer):
        with torch.autocast("cpu", torch.float16):
            y = module(x)
        y.backward(grad.half())
    assert twin.weight.grad.isfinite().all()
    expected = torch.autograd.grad(layer(x), list(layer.parameters()), grad)
    for (name, parameter), value in zip(layer.named_parameters(), expected, strict=True):
        assert (parameter.grad - value).norm() < 0.02 * value.norm(), name
    assert layer.rule.decode.grad.abs().max() > torch.finfo(torch.float16).max
