"""Torch's machinery around a layer: tracing, batched gradients, checkpointing, nested tensors, for all methods."""

import pytest
import torch
from layer_cases import LAYERS
from torch import nn
from torch.utils.checkpoint import checkpoint

from nplex import algebra, ops
from nplex import nn as nx

RULES = {"4": lambda: 4, "4:7": lambda: nx.LearnedRule(4, rank=7), "quaternion": lambda: algebra.quaternion}
CALLS = [
    (method, rule)
    for method in ("auto", *ops.METHODS)
    for rule in RULES
    if rule != "4" or method in ("auto", "reference") or not ops.METHODS[method].needs_factors
]
TOKENS = [3, 200]
every_call = pytest.mark.parametrize(("method", "rule"), CALLS)
every_size = pytest.mark.parametrize("tokens", TOKENS)


def linear(method, rule, sizes=(10, 14)):
    torch.manual_seed(0)
    return nx.Linear(*sizes, rule=RULES[rule](), method=method)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@every_call
def test_traced(method, rule):
    layer = linear(method, rule)
    traced = torch.jit.trace(layer, torch.randn(3, 10))
    for tokens in (3, 5, 64):
        x = torch.randn(tokens, 10)
        torch.testing.assert_close(traced(x), layer(x))


@every_size
@every_call
def test_several_gradients_at_once(method, rule, tokens):
    layer = linear(method, rule).double()
    x = torch.randn(tokens, 10, dtype=torch.float64, requires_grad=True)
    y, wanted = layer(x), [x, *layer.parameters()]
    grads = torch.randn(3, *y.shape, dtype=y.dtype)
    at_once = torch.autograd.grad(y, wanted, grads, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, wanted, grad, retain_graph=True) for grad in grads]
    for ours, theirs in zip(at_once, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(theirs))


@every_call
def test_checked_by_torch(method, rule):
    layer = linear(method, rule, (5, 6)).double()
    inputs = [torch.randn(2, 5, dtype=torch.float64, requires_grad=True), layer.components, layer.bias]

    def run(x, components, bias):
        return torch.func.functional_call(layer, {"components": components, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(run, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("use_reentrant", [False, True])
@every_call
def test_checkpointing_inside_cached(method, rule, use_reentrant):
    model, x = nn.Sequential(linear(method, rule), nn.ReLU(), linear(method, rule, (14, 10))), torch.randn(5, 10)
    x.requires_grad_()
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with nx.cached(model):
        for _ in range(2):
            checkpoint(model, x, use_reentrant=use_reentrant).square().sum().backward()
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@every_call
def test_nested(method, rule):
    layer, parts = linear(method, rule), [torch.randn(2, 10), torch.randn(5, 10)]
    y = layer(torch.nested.nested_tensor(parts, layout=torch.jagged))
    for ours, part in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(ours, layer(part))


@every_call
def test_made_in_inference_mode_and_moved(method, rule):
    with torch.inference_mode():
        layer = linear(method, rule)
    layer.to("cpu").eval().float()
    with torch.no_grad():  # torch's layers take no gradients of such parameters either
        assert layer(torch.randn(3, 10)).shape == (3, 14)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", LAYERS)
def test_fx_keeps_a_layer_as_one_call(name):
    torch.manual_seed(0)
    case = LAYERS[name]
    layer = case.make(8, rule=4).eval()
    inputs = case.inputs(8, torch.float32)
    names = [f"x{i}" for i in range(len(inputs))]
    space = {"nn": nn}
    exec(  # a module whose forward has as many arguments as the layer has inputs
        f"class Model(nn.Module):\n def __init__(self, layer):\n  super().__init__()\n  self.layer = layer\n"
        f" def forward(self, {', '.join(names)}):\n  return self.layer({', '.join(names)})",
        space,
    )
    model = space["Model"](layer)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer"]
    torch.testing.assert_close(traced(*inputs), model(*inputs))
