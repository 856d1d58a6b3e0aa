"""Every layer of the table on a CUDA device that is not there; writes what it saw as JSON, a line a call."""

import json
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
import fake_cuda
import layer_cases
import torch
from cases import RULES
from layer_cases import LAYERS
from torch.utils._pytree import tree_leaves, tree_map

from nplex import nn
from nplex.nn import LearnedRule
from nplex.ops import METHODS

warnings.simplefilter("ignore")
CUDA, HALF, BRAIN, FLOAT = torch.device("cuda"), torch.float16, torch.bfloat16, torch.float32
TYPES = ((FLOAT, BRAIN), (FLOAT, HALF), (HALF, None))  # of the numbers, and of autocast


def outputs(layer, inputs):
    return [leaf for leaf in tree_leaves(layer(*inputs)) if leaf is not None]


def call(layer, inputs, autocast):
    """Types of the outputs; bytes of inputs and parameters and what is kept beside them; what waited and strayed."""
    floating = [x for x in tree_leaves(inputs) if x.is_floating_point()]
    watch, saved = fake_cuda.Watch(), fake_cuda.Saved(*floating, *layer.parameters())
    with watch:
        with saved, torch.autocast("cuda", autocast or BRAIN, enabled=autocast is not None):
            ys = outputs(layer, inputs)
        sum(y.float().sum() for y in ys).backward()
    types = [str(y.dtype) for y in ys]
    numbers = saved.bytes + sum(t.numel() * t.element_size() for t in (*floating, *layer.parameters()))
    return {"types": types, "numbers": numbers, "waits": sorted(watch.waits), "strays": sorted(watch.strays)}


class Torch:
    """torch.nn's layers, which are made with nplex's arguments."""

    def __getattr__(self, name):
        return lambda *args, rule, **kwargs: getattr(torch.nn, name)(*args, **kwargs)


def dense(make, **kwargs):
    """What `make` makes, of torch's layers."""
    layer_cases.nn = Torch()
    try:
        return make(10, rule=None, **kwargs)
    finally:
        layer_cases.nn = nn


def of(layer, twin, inputs, dtype, autocast, **about):
    """One line: the layer beside torch's."""
    inputs = tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)
    for x in tree_leaves(inputs):
        x.requires_grad_(x.is_floating_point())
    about |= {"dtype": str(dtype), "autocast": str(autocast)}
    try:
        theirs = call(twin, inputs, autocast)
    except (NotImplementedError, AssertionError):  # an operator of CUDA alone, which fake tensors do not know
        print(json.dumps(about | {"skipped": True}), flush=True)
        return
    found = call(layer, inputs, autocast)
    grads = {str(p.grad.dtype) for p in layer.parameters() if p.grad is not None}
    print(json.dumps(about | {"grads": sorted(grads), "theirs": theirs} | found), flush=True)


def table():
    """Every layer, once narrow in torch's ways and once by autocast."""
    for name, case in LAYERS.items():
        for rule, types in (("learned 3", TYPES[:1]), ("learned 4:7", TYPES)):
            for dtype, autocast in types:
                layer = case.make(10, rule=RULES[rule](dtype=dtype), dtype=dtype)
                twin, inputs = dense(case.make, dtype=dtype), case.inputs(10, FLOAT)
                of(layer, twin, inputs, dtype, autocast, name=name, rule=rule)


def linear(widths, tokens, n, rank, method, dtype, autocast, name):
    """The fully-connected layer."""
    layer = nn.Linear(*widths, rule=LearnedRule(n, rank, dtype=dtype), method=method, dtype=dtype)
    twin, inputs = torch.nn.Linear(*widths, dtype=dtype), (torch.randn(tokens, widths[0]),)
    of(layer, twin, inputs, dtype, autocast, name=name, rule=f"{n}:{rank}")


def main():
    fake_cuda.look_ordinary()
    with fake_cuda.FakeTensorMode(), CUDA:
        table()
        for method in ("auto", *METHODS):
            for tokens in (1, 5, 100, 3000):
                for rank in (7,) if method == "bilinear" else (None, 7):
                    for dtype, autocast in TYPES[::2]:
                        linear((64, 128), tokens, 4, rank, method, dtype, autocast, f"{tokens} tokens, {method}")
        for n, rank in ((4, None), (4, 7), (4, 4), (8, 24)):
            linear((1024, 4096), 8192, n, rank, "bilinear" if rank else "dense", BRAIN, None, "large")


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # autograd's threads of a device that is not there may end the process loudly
