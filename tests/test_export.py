"""Whole models in torch.export, torch.compile and ONNX, in fresh processes: see programs/models_exported.py."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from model_cases import MODELS

PROGRAMS = Path(__file__).parent / "programs"
FORMS = ("dense", "own rules", "shared, rank 7", "folded")
NOT_BY_TORCH = {  # what torch cannot do to the dense model, and what it says; looked at in each run
    "export:tagger": "size.*must be tuple of ints,but got FakeTensor",  # packed sequences
    "compile:tagger": "pack_padded_sequence.*should not be traced",
    "onnx:tagger": "size.*must be tuple of ints,but got FakeTensor",
    "onnx:t5": "Failed to decompose.*Cannot view a tensor",
}


def run(program, *arguments):
    done = subprocess.run(
        [sys.executable, PROGRAMS / program, *arguments], capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


def check(jobs):
    """Every form of every model gave equal outputs, or torch cannot do that to the dense one, as known."""
    lines = [line for line in run("models_exported.py", *jobs) if line.startswith(("export ", "compile ", "onnx "))]
    for job in jobs:
        step, _, name = job.partition(":")
        found = [line.removeprefix(f"{step} {name} ") for line in lines if line.startswith(f"{step} {name} ")]
        if job in NOT_BY_TORCH:
            assert len(found) == 1
            assert re.search(f"^torch cannot: .*{NOT_BY_TORCH[job]}", found[0]), found
        else:
            assert tuple(found) == FORMS


def test_models_of_torch_are_exported_and_compiled():
    check(["export:encoder", "export:tagger", "compile:images"])


@pytest.mark.slow
def test_all_models_are_exported():
    pytest.importorskip("transformers", reason="needs nplex[hf]")
    check([f"export:{name}" for name in MODELS])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_all_models_are_compiled(name):
    if MODELS[name].auto:
        pytest.importorskip("transformers", reason="needs nplex[hf]")
    check([f"compile:{name}"])


@pytest.mark.slow
def test_models_run_in_onnxruntime():
    for package in ("transformers", "onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}, of nplex[hf] and nplex[onnx]")
    check([f"onnx:{name}" for name in ("bert", "gpt2", "t5", "encoder", "images", "tagger")])


@pytest.mark.slow
def test_onnx_files_of_wide_layers_are_small():
    """The exporter multiplies small weights out, and leaves rule and components of large ones."""
    if importlib.util.find_spec("onnxscript") is None:
        pytest.skip("needs onnxscript, of nplex[onnx]")
    dense, own, shared = (int(line) for line in run("onnx_sizes.py")[-3:])
    assert dense > 10**7
    assert own < 0.3 * dense
    assert shared < 0.3 * dense


@pytest.mark.slow
def test_folded_models_are_quantized_by_torchao():
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("needs torchao, which transformers imports by itself: give it an environment of its own")
    assert run("models_quantized.py", "bert", "llama", "encoder") == ["ok bert", "ok llama", "ok encoder"]
