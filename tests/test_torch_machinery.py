"""Torch's machinery around a layer: tracing, batched gradients, fake and missing numbers; all layers and methods."""

import inspect
import io

import layer_cases
import numpy as np
import pytest
import torch
from layer_cases import LAYERS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
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


def methods_of(name):
    """Those that a layer can be told to compute by; of a container, whose parts have them, the planned one alone."""
    kind = getattr(nx, name.partition(",")[0])
    if "method" not in inspect.signature(kind).parameters or "Transf" in name:
        return ["auto"]
    return ["auto", *(ops.conv.METHODS if "Conv" in name else ops.METHODS)]


SLOW = {"Transformer", "TransformerDecoderLayer"}  # all of their parts are quick
LONG = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in LAYERS]
LAYER_CALLS = [
    pytest.param(name, method, marks=pytest.mark.slow) if name in SLOW else (name, method)
    for name in LAYERS
    for method in methods_of(name)
]
# What torch itself cannot do with its own layer.
NO_FORWARD_DERIVATIVES = {"EmbeddingBag", "LSTM", "GRU"}
NO_ONNX = {"LSTM", "TransformerEncoderLayer", "TransformerDecoderLayer", "Transformer"}
every_layer = pytest.mark.parametrize("name", LONG)
every_rule = pytest.mark.parametrize("rule", RULES)
every_layer_and_method = pytest.mark.parametrize(("name", "method"), LAYER_CALLS)
of_torch = pytest.mark.filterwarnings(
    "ignore:LSTM with projections", "ignore:There is a performance drop", "ignore::torch.jit.TracerWarning",
    "ignore::DeprecationWarning", "ignore:Exporting a model to ONNX", "ignore:You are trying to export the model",
    "ignore:Accessing the data pointer of FakeTensor",
    "ignore:Constant folding",
)  # fmt: skip
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


def made(name, rule="4:7", method="auto", dtype=torch.float32):
    """A layer of the table that computes by this method, in eval mode, and inputs for it."""
    torch.manual_seed(0)
    case = LAYERS[name]
    options = {} if method == "auto" else {"method": method}
    return case.make(8, rule=RULES[rule](), **options).eval().to(dtype), case.inputs(8, dtype)


def outputs(found):
    return [leaf for leaf in tree_leaves(found) if leaf is not None]


def call_of(layer, inputs):
    """The first output as a function of the floating inputs and all parameters, and these."""
    flat, spec = tree_flatten(inputs)
    where, state = [i for i, x in enumerate(flat) if x.is_floating_point()], dict(layer.named_parameters())

    def run(*given):
        args, new = list(flat), dict(zip(state, given[len(where) :], strict=True))
        for i, x in zip(where, given, strict=False):
            args[i] = x
        return outputs(torch.func.functional_call(layer, new, tree_unflatten(args, spec)))[0]

    return run, [x.detach().clone().requires_grad_() for x in (*(flat[i] for i in where), *state.values())]


@of_torch
@every_layer_and_method
def test_every_layer_traced_and_saved(name, method, unchecked):
    layer, inputs = made(name, method=method)
    traced, file = torch.jit.trace(layer, inputs, check_trace=False), io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    for x in (inputs, LAYERS[name].inputs(8, torch.float32)):
        expected = outputs(layer(*x))
        torch.testing.assert_close(outputs(traced(*x)), expected)
        torch.testing.assert_close(outputs(torch.jit.load(file)(*x)), expected)
        file.seek(0)
    found = []
    for one in (traced, layer):
        layer.zero_grad()
        sum(y.square().sum() for y in outputs(one(*inputs))).backward()
        found.append([p.grad for p in layer.parameters()])
    torch.testing.assert_close(*found)


@of_torch
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NO_ONNX])
def test_every_layer_in_onnx_by_tracing(name, unchecked):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    (layer, inputs), file = made(name), io.BytesIO()
    torch.onnx.export(layer, inputs, file, dynamo=False, opset_version=17)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    found = session.run(None, {key: x.numpy() for key, x in zip(names, tree_leaves(inputs), strict=False)})
    for ours, expected in zip(found, outputs(layer(*inputs)), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), expected, rtol=1e-4, atol=1e-5)


@of_torch
@every_layer
def test_every_layer_by_make_fx(name):
    layer, inputs = made(name)
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    for mode in ("real", "fake"):
        traced = make_fx(lambda s, *x: torch.func.functional_call(layer, s, x), tracing_mode=mode)(state, *inputs)
        others = LAYERS[name].inputs(8, torch.float32)
        torch.testing.assert_close(outputs(traced(state, *others)), outputs(layer(*others)))


@of_torch
@every_layer_and_method
def test_several_gradients_of_every_layer_at_once(name, method):
    layer, inputs = made(name, method=method, dtype=torch.float64)
    run, given = call_of(layer, inputs)
    y = run(*given)
    grads = torch.randn(3, *y.shape, dtype=y.dtype)
    options = {"retain_graph": True, "materialize_grads": True}
    at_once = torch.autograd.grad(y, given, grads, is_grads_batched=True, **options)
    each = [torch.autograd.grad(y, given, grad, **options) for grad in grads]
    torch.testing.assert_close(at_once, tuple(map(torch.stack, zip(*each, strict=True))))


@of_torch
@every_layer_and_method
def test_jacobians_of_every_layer(name, method):
    layer, inputs = made(name, method=method, dtype=torch.float64)
    run, given = call_of(layer, inputs)
    given, some = given[:1] if tree_leaves(inputs)[0].is_floating_point() else given, given[1:]

    def first(x, *rest):
        return run(x, *(rest or some)).flatten()[:3]

    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(first, tuple(given))
    torch.testing.assert_close(jacobian(first, tuple(given), vectorize=True), expected)
    if name not in NO_FORWARD_DERIVATIVES:
        forward = jacobian(first, tuple(given), vectorize=True, strategy="forward-mode")
        torch.testing.assert_close(forward, expected)


@of_torch
@every_layer_and_method
def test_every_layer_checked_by_torch(name, method):
    layer, inputs = made(name, method=method, dtype=torch.float64)
    run, given = call_of(layer, inputs)
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@of_torch
@every_rule
@every_layer
def test_every_layer_in_fake_tensor_mode(name, rule):
    layer, inputs = made(name, rule)
    expected, mode = outputs(layer(*inputs)), FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fake, fakes = LAYERS[name].make(8, rule=RULES[rule]()).eval(), LAYERS[name].inputs(8, torch.float32)
        state = tree_map(mode.from_tensor, {**dict(layer.named_parameters()), **dict(layer.named_buffers())})
        fake.load_state_dict(state)
        for found in (fake(*fakes), fake(*inputs), torch.func.functional_call(layer, state, fakes)):
            for one, other in zip(outputs(found), expected, strict=True):
                assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
                assert one.fake_mode is mode
        sum(y.sum() for y in outputs(fake(*fakes))).backward()
        fake.to_torch()
    other, _ = made(name, rule)  # no fake numbers stay behind
    torch.testing.assert_close(outputs(other(*inputs)), expected)


@of_torch
@pytest.mark.parametrize("how", ["meta", "empty weights", "empty weights and buffers"])
@every_rule
@every_layer
def test_every_layer_without_numbers_takes_those_assigned(name, rule, how):
    layer, inputs = made(name, rule)
    if how == "meta":
        with torch.device("meta"):
            empty = LAYERS[name].make(8, rule=RULES[rule]())
    else:
        accelerate = pytest.importorskip("accelerate")
        with accelerate.init_empty_weights(include_buffers="buffers" in how):
            empty = LAYERS[name].make(8, rule=RULES[rule]())
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(layer.state_dict(), assign=True)
    assert not any(t.is_meta for t in (*empty.parameters(), *empty.buffers()))
    assert all(isinstance(p, nn.Parameter) for p in empty.parameters())
    torch.testing.assert_close(outputs(empty.eval()(*inputs)), outputs(layer(*inputs)))


@of_torch
@every_rule
@every_layer
def test_every_layer_and_inference_mode(name, rule):
    with torch.inference_mode():
        layer, inputs = made(name, rule)
        expected = outputs(layer(*inputs))
        with nx.cached(layer):
            for _ in range(2):
                torch.testing.assert_close(outputs(layer(*inputs)), expected)
    layer.to("cpu").float()
    with torch.no_grad():  # torch's layers take no gradients of such parameters either
        torch.testing.assert_close(outputs(layer(*inputs)), expected)
    trained, inputs = made(name, rule)
    with torch.inference_mode():
        looked = outputs(trained(*inputs))
        trained.to_torch()
    torch.testing.assert_close(outputs(trained(*inputs)), looked)
    sum(y.sum() for y in outputs(trained(*inputs))).backward()


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_numpy_sizes(name, monkeypatch, unchecked):
    class Numpy:
        def __getattr__(self, kind):
            return lambda *args, **options: getattr(nx, kind)(
                *map(number, args), **{key: number(value) for key, value in options.items()}
            )

    def number(value):
        if isinstance(value, tuple):
            return tuple(map(number, value))
        return np.int64(value) if type(value) is int else value

    monkeypatch.setattr(layer_cases, "nn", Numpy())
    layer = LAYERS[name].make(np.int64(8), rule=np.int64(4))
    for module in layer.modules():
        for key, value in vars(module).items():
            held = value if isinstance(value, tuple) else (value,)
            assert not any(isinstance(one, np.generic) for one in held), (module, key)
