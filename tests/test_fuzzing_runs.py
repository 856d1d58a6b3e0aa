"""A small run of the fuzzer of run folders; `python tests/fuzzing_runs.py --folders 450` is the whole."""

import os

import pytest
from fuzzing_runs import fuzz


@pytest.mark.skipif(os.name == "nt", reason="Windows has no alarm, which ends what hangs")
def test_damaged_run_folders_are_refused_in_a_line_or_give_what_they_gave(tmp_path):
    pytest.importorskip("plotly")
    found, faults = fuzz(30, 4, tmp_path)
    assert faults == []
    assert min(found["the same"], found["refused"]) > 4
