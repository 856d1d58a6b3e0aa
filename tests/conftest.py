"""Checks every shape annotation of the package while the tests run."""

import os

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("nplex", "beartype.beartype")
collect_ignore_glob = ["programs/*"]  # run by tests, in processes of their own

hypothesis.settings.register_profile("nplex", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("nplex")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(os.path.expanduser("~"), ".cache", "nplex-inductor"))


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """Switches the annotations' checks off: for what our own errors say about wrong types."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
