"""Compiles and exports every layer of the table, and compares with the plain call. Prints "ok" for each.

In a process of its own: the tests' checks of shape annotations cannot be traced.
"""

import sys
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).parents[1]))
from cases import RULES
from layer_cases import LAYERS


def outputs(layer, inputs):
    return [leaf for leaf in tree_leaves(layer(*inputs)) if leaf is not None]


def main():
    for name, case in LAYERS.items():
        for rule in ("learned 3", "learned 4:7") if case.compiles else ():
            check(name, case, rule)


def check(name, case, rule):
    torch.compiler.reset()
    layer, inputs = case.make(10, rule=RULES[rule]()).eval(), case.inputs(10, torch.float32)
    expected = outputs(layer, inputs)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(outputs(compiled, inputs), expected, rtol=1e-4, atol=1e-5)
    sum(y.square().sum() for y in outputs(compiled, inputs)).backward()
    exported = torch.export.export(layer, tuple(inputs)).module()
    torch.testing.assert_close(outputs(exported, inputs), expected, rtol=1e-4, atol=1e-5)
    print("ok", name, rule, flush=True)


if __name__ == "__main__":
    main()
