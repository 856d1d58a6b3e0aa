"""Run by test_compile.py in a fresh process, without the annotations' checks, which torch.compile cannot trace."""

import sys

import torch
from torch import nn

from nplex.algebra import quaternion
from nplex.nn import LearnedRule, Linear, share
from nplex.ops import METHODS, machine, plan, token_major


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        rule = share(self, LearnedRule(4, 7))
        self.up, self.down = Linear(9, 16, rule=rule), Linear(16, 7, rule=rule)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def gradients(model, x, outputs):
    return torch.autograd.grad(outputs.square().sum(), [x, *model.parameters()])


def same(model, x, run):
    eager, found = model(x), run(x)
    torch.testing.assert_close(found, eager)
    for one, other in zip(gradients(model, x, found), gradients(model, x, eager), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def transformed(model, x):
    for function in (
        torch.func.grad(lambda x: model(x).square().sum()),
        torch.vmap(model),
        lambda x: torch.func.jvp(model, (x,), (x,))[1],
    ):
        torch.testing.assert_close(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x))


def layers():
    for method in ("auto", *METHODS):
        yield f"rank 7, {method}", Linear(9, 14, rule=LearnedRule(4, 7), method=method)
    yield "full, auto", Linear(9, 14, rule=4)
    yield "quaternion, auto", Linear(8, 16, rule=quaternion)
    yield "shared", Pair()


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ways = [way for way in sys.argv[1:] if way != "as on a GPU"]
    if ways != sys.argv[1:]:
        machine.GPU = plan.GPU = "cpu"
        token_major.DEVICES = ("cpu",)
        transformed(Linear(9, 14, rule=LearnedRule(4, 7), method="bilinear"), torch.randn(5, 9))
    for name, model in layers():
        width = (model.up if isinstance(model, Pair) else model).in_features
        x = torch.randn(5, width, requires_grad=True)
        for way in ways:
            if way == "export":
                batch = torch.export.Dim("batch")
                program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},)).module()
                longer = torch.randn(11, width)
                torch.testing.assert_close(program(longer), model(longer))
            else:
                same(model, x, torch.compile(model, fullgraph=True, backend=way))
            print("ok", way, name, flush=True)


if __name__ == "__main__":
    main()
