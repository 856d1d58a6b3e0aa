"""Checks every shape annotation of the package while the tests run, and every other one."""

import collections
import dataclasses
import functools
import inspect
import os
import typing

import hypothesis
import jaxtyping
import pytest
import torch
from beartype import beartype

with_shapes = jaxtyping.jaxtyped
MOST, calls = 20, collections.Counter()


def checked(fn=None, *, typechecker):
    """What jaxtyping's hook decorates with: a check of a function's first calls in each test.

    Jaxtyping's own wrapper, ten times as slow as beartype's, stands only around functions with shapes.
    """
    if fn is None:
        return functools.partial(checked, typechecker=typechecker)
    if dataclasses.is_dataclass(fn) and inspect.isfunction(vars(fn).get("__init__")):
        fn.__init__ = checked(fn.__init__, typechecker=typechecker)
    if inspect.isclass(fn):
        return fn
    if getattr(fn, "__module__", "") == "nplex.ops.kernels":  # Triton reads the functions themselves
        return fn
    if not inspect.isfunction(fn):
        return with_shapes(fn, typechecker=typechecker)
    shapes = any(map(has_shape, fn.__annotations__.values()))
    safe = with_shapes(fn, typechecker=typechecker) if shapes else beartype(fn)

    @functools.wraps(fn)
    def called(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable or calls[fn] >= MOST:
            return fn(*args, **kwargs)
        calls[fn] += 1
        return safe(*args, **kwargs)

    return called if fn.__annotations__ else fn


def has_shape(annotation):
    """Whether a shape stands in it; a text may hold one."""
    if isinstance(annotation, str) or (
        isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray)
    ):
        return True
    parts = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return typing.get_origin(annotation) is not typing.Literal and any(map(has_shape, parts))


jaxtyping.jaxtyped = checked
jaxtyping.install_import_hook("nplex", "beartype.beartype")
collect_ignore_glob = ["programs/*"]  # run by tests, in processes of their own

hypothesis.settings.register_profile("nplex", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("nplex")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(os.path.expanduser("~"), ".cache", "nplex-inductor"))


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    calls.clear()


@pytest.fixture
def unchecked():
    """Switches the annotations' checks off: for what our own errors say about wrong types."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
