"""A small run of the fuzzer of models on disk; `python tests/fuzzing.py --files 12000` is the whole."""

import importlib.util
import os

import pytest
from fuzzing import fuzz


@pytest.mark.skipif(os.name == "nt", reason="Windows has no alarm, which ends what hangs")
def test_damaged_models_are_refused_in_a_line_or_mean_what_they_meant(tmp_path):
    there = importlib.util.find_spec("transformers") is not None
    found, faults = fuzz(30, 4, tmp_path, folders=("bert-4",) if there else ())
    assert faults == []
    assert found["refused"] > 5
    assert found["the same"] > 0
