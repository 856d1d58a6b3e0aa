"""What is kept inside nplex.nn.cached is used, and is never stale."""

import copy
import dataclasses
import pickle

import pytest
import torch
from cases import RULES, methods_for
from torch import nn

from nplex import ops
from nplex.nn import (
    GRU,
    LSTM,
    RNN,
    Conv2d,
    GRUCell,
    LearnedRule,
    Linear,
    LSTMCell,
    MultiheadAttention,
    RNNCell,
    cached,
    share,
)
from nplex.ops import cache, conv, grouped, tracing

METHODS = [(name, method) for name, make in RULES.items() for method in methods_for(make())]
CHANGES = {
    "in place": lambda layer: layer.components.mul_(2),
    "slice": lambda layer: layer.components[0, 0].zero_(),
    "detached": lambda layer: layer.components.detach().add_(1),
    "load": lambda layer: layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()}),
    "load, assigned": lambda layer: layer.load_state_dict(
        {k: nn.Parameter(v + 1) for k, v in layer.state_dict().items()}, assign=True
    ),
    "new parameter": lambda layer: setattr(layer, "components", nn.Parameter(layer.components + 1)),
    "new rule": lambda layer: setattr(layer, "rule", LearnedRule(4, layer.rule.rank, dtype=torch.float64)),
    "data exchanged": lambda layer: setattr(layer.components, "data", layer.components + 1),
    "rule in place": lambda layer: next(layer.rule.parameters()).mul_(2),
    "inference mode": lambda layer: _in_inference_mode(layer),
}


def _in_inference_mode(layer):
    with torch.inference_mode():
        layer.components.mul_(2)


@pytest.fixture
def builds(monkeypatch):
    """Names what is built, by linear layers, convolutions and recurrent layers."""
    built = []
    for table in (ops.METHODS, conv.METHODS):
        for name, method in list(table.items()):
            noted = dataclasses.replace(
                method, prepare=lambda *a, method=method: built.append(method.name) or method.prepare(*a)
            )
            monkeypatch.setitem(table, name, noted)
    expand = grouped.expand
    monkeypatch.setattr(grouped, "expand", lambda *args: built.append("weight") or expand(*args))
    return built


@pytest.mark.parametrize(("name", "method"), METHODS)
def test_the_same_outputs_and_gradients(name, method):
    layer = Linear(18, 17, rule=RULES[name](dtype=torch.float64), method=method, dtype=torch.float64)
    x = torch.randn(5, 18, dtype=torch.float64, requires_grad=True)

    def run():
        y = layer(x) + layer(2 * x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    expected = run()
    with cached(layer):
        torch.testing.assert_close(run(), expected)
        torch.testing.assert_close(run(), expected)
        with torch.no_grad():
            torch.testing.assert_close(layer(x) + layer(2 * x), expected[0])


@pytest.mark.parametrize(("rank", "method"), [(None, "dense"), (7, "dense"), (7, "bilinear"), (7, "rule_first")])
def test_built_once_for_many_calls(builds, rank, method):
    layer = Linear(16, 16, rule=LearnedRule(4, rank), method=method)
    with cached(layer):
        for _ in range(3):
            layer(torch.ones(2, 16))
        with torch.no_grad():
            for _ in range(3):
                layer(torch.ones(2, 16))
    assert builds == [method] * 2  # one with a graph, one without
    layer(torch.ones(2, 16))
    assert len(builds) == 2
    assert cache._ACTIVE == {}


LAYERS = {
    "Linear": (lambda **kw: Linear(8, 12, **kw), (2, 8), 1),
    "attention": (lambda **kw: MultiheadAttention(8, 2, **kw), (3, 2, 8), 2),
    "RNNCell": (lambda **kw: RNNCell(8, 8, **kw), (2, 8), 2),
    "LSTMCell": (lambda **kw: LSTMCell(8, 8, **kw), (2, 8), 2),
    "GRUCell": (lambda **kw: GRUCell(8, 8, **kw), (2, 8), 2),
    "RNN": (lambda **kw: RNN(8, 8, **kw), (3, 2, 8), 2),
    "LSTM": (lambda **kw: LSTM(8, 8, **kw), (3, 2, 8), 2),
    "GRU": (lambda **kw: GRU(8, 8, **kw), (3, 2, 8), 2),
    "Conv2d": (lambda **kw: Conv2d(8, 12, 3, **kw), (2, 8, 5, 5), 1),
}


def _output(layer, x):
    found = layer(x, x, x) if isinstance(layer, MultiheadAttention) else layer(x)
    while isinstance(found, tuple):
        found = found[0]
    return found


@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_builds_once_and_is_never_stale(builds, kind, rank):
    make, shape, parameters = LAYERS[kind]
    layer = make(rule=LearnedRule(4, rank, dtype=torch.float64), dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01, fused=True)
    for context in (torch.no_grad, torch.inference_mode):
        expected = _output(layer, x).detach()
        builds.clear()
        with context(), cached(layer):
            for _ in range(3):
                torch.testing.assert_close(_output(layer, x), expected)
            kept = [name for name in builds if name != "weight" or kind in ("RNN", "LSTM", "GRU")]
            assert len(kept) == parameters
    with cached(layer):
        for _ in range(2):
            _output(layer, x).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                found = _output(layer, x)
                torch.testing.assert_close(found, _output(copy.deepcopy(layer), x))  # a copy has nothing kept


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_every_layer_are_the_same(kind):
    make, shape, _ = LAYERS[kind]
    layer = make(rule=LearnedRule(4, 7, dtype=torch.float64), dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def run():
        y = _output(layer, x) + _output(layer, 2 * x)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    expected = run()
    with cached(layer):
        torch.testing.assert_close(run(), expected)
        torch.testing.assert_close(run(), expected)


def test_projections_of_one_attention_are_kept_apart(builds):
    layer = MultiheadAttention(8, 2, rule=4)
    query, key, value = torch.randn(3, 4, 2, 8)
    inputs = [(query, query, query), (query, key, value), (query, key, key), (query, query, value)]
    with torch.no_grad():
        expected = [layer(*three)[0] for three in inputs]
        with cached(layer):
            for _ in range(2):
                for three, right in zip(inputs, expected, strict=True):
                    torch.testing.assert_close(layer(*three)[0], right)


def test_a_weight_that_is_read_is_the_readers():
    layer, x = LSTM(8, 8, rule=4), torch.randn(3, 2, 8)
    with torch.no_grad(), cached(layer):
        before = _output(layer, x)
        layer.weight_ih_l0.numpy().fill(0)  # what no guard sees
        torch.testing.assert_close(_output(layer, x), before)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("rank", "method"), [(None, "dense"), (7, "dense"), (7, "bilinear"), (7, "rule_first")])
def test_never_stale(change, rank, method):
    layer = Linear(16, 12, rule=LearnedRule(4, rank, dtype=torch.float64), method=method, dtype=torch.float64)
    x = torch.randn(3, 16, dtype=torch.float64)
    with torch.no_grad(), cached(layer):
        before = layer(x)
        CHANGES[change](layer)
        after = layer(x)
    torch.testing.assert_close(after, layer(x).detach())
    assert not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 2, 3, 33])
@pytest.mark.parametrize(("n", "widths"), [(1, (8, 8)), (2, (18, 17)), (3, (16, 32)), (5, (33, 18))])
def test_packed_components_give_the_same(monkeypatch, dtype, tokens, n, widths):
    monkeypatch.setattr(ops.packed, "LEAST_BYTES", 0)
    layer = Linear(*widths, rule=LearnedRule(n, dtype=dtype), method="rule_first", dtype=dtype)
    x = torch.randn(tokens, widths[0], dtype=dtype)
    expected, tolerance = layer(x), 16 * torch.finfo(dtype).eps
    with cached(layer):
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected, rtol=tolerance, atol=tolerance)
            assert _packed(layer) == tracing.onednn_packs(dtype)
            layer.components.mul_(2)
            torch.testing.assert_close(layer(x), 2 * expected - layer.bias, rtol=tolerance, atol=2 * tolerance)
        y = layer(x.requires_grad_())  # with gradients nothing is packed
        assert torch.autograd.grad(y.sum(), [x, *layer.parameters()])[0].isfinite().all()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def _packed(layer):
    """Whether what is kept for rule_first is packed."""
    kept = cache.kept_for(layer.components, layer.rule())
    return kept.get(("rule_first", None), lambda: pytest.fail("nothing is kept"))[1].is_mkldnn


def test_one_type_that_onednn_cannot_pack_falls_back_alone(monkeypatch):
    """As bfloat16 on processors without AVX-512, where oneDNN raises a RuntimeError."""
    pack = tracing.onednn_pack

    def refusing(weight, rows):
        if weight.dtype == torch.bfloat16:
            raise RuntimeError("bfloat16 needs AVX-512")
        return pack(weight, rows)

    monkeypatch.setattr(tracing, "onednn_pack", refusing)
    tracing.onednn_packs.cache_clear()
    try:
        for dtype in (torch.float32, torch.bfloat16):
            layer = Linear(1024, 1024, rule=LearnedRule(4, dtype=dtype), method="rule_first", dtype=dtype)
            with torch.no_grad(), cached(layer):
                layer(torch.ones(1, 1024, dtype=dtype))
                assert _packed(layer) == tracing.onednn_packs(dtype)
        assert not tracing.onednn_packs(torch.bfloat16)
    finally:
        tracing.onednn_packs.cache_clear()


def test_without_onednn_nothing_is_packed(monkeypatch):
    monkeypatch.setattr(tracing, "onednn_packs", lambda dtype: False)
    layer = Linear(1024, 1024, rule=4, method="rule_first")
    with cached(layer), torch.no_grad():
        layer(torch.ones(1, 1024))
        assert not _packed(layer)


def test_never_stale_after_a_change_of_type_or_place():
    layer = Linear(16, 12, rule=LearnedRule(4, 7), method="dense")
    with torch.no_grad(), cached(layer):
        layer(torch.ones(2, 16))
        assert layer.double()(torch.ones(2, 16).double()).dtype == torch.float64
        assert layer.to("meta")(torch.ones(2, 16, device="meta").double()).device.type == "meta"


@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_never_stale_after_a_step_of_an_optimizer(kind, settings):
    layer = Linear(16, 12, rule=LearnedRule(4, 7), method="bilinear")
    optimizer, x = kind(layer.parameters(), lr=0.01, **settings), torch.randn(3, 16)
    with cached(layer):
        for _ in range(3):
            layer(x).square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                found = layer(x)
                torch.testing.assert_close(found, ops.product(x, layer.rule(), layer.components, layer.bias))


def test_several_backwards_without_a_step():
    layer, x = Linear(16, 12, rule=4, method="dense"), torch.randn(3, 16)
    layer(x).sum().backward()
    once = layer.components.grad.clone()
    layer.zero_grad()
    with cached(layer):
        for _ in range(3):
            layer(x).sum().backward()
    torch.testing.assert_close(layer.components.grad, 3 * once)


def test_autocast_and_plain_calls_do_not_share():
    layer, x = Linear(16, 12, rule=LearnedRule(4, 7), method="dense"), torch.randn(3, 16)
    with torch.no_grad(), cached(layer):
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(layer(x), exact)


def test_inference_tensors_are_not_kept():
    with torch.inference_mode():
        layer, x = Linear(16, 12, rule=4, method="dense"), torch.randn(3, 16)
        with cached(layer):
            before = layer(x)
            layer.components.mul_(2)
            assert not torch.equal(layer(x), before)
    layer = Linear(16, 12, rule=4, method="dense")
    with cached(layer):
        with torch.inference_mode():
            layer(x)
        layer(torch.ones(3, 16)).sum().backward()  # what was made in inference mode cannot be saved for backward


def test_vmap_and_copies_do_without():
    layer, x = Linear(16, 12, rule=LearnedRule(4, 7)), torch.randn(3, 16)
    with torch.no_grad(), cached(layer):
        torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
        for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert cache.kept_for(copied.components, copied.rule()) is None


def test_nested_and_after_an_error():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            rule = share(self, LearnedRule(4))
            self.up, self.down, self.plain = Linear(8, 16, rule=rule), Linear(16, 8, rule=rule), nn.Linear(8, 8)

    def kept(layer):
        return cache.kept_for(layer.components, layer.rule())

    model = Model()
    with cached(model):
        outer = kept(model.up)
        with cached(model.up):
            assert kept(model.up) is outer
        assert kept(model.up) is outer
        assert kept(model.down) is not None
    with pytest.raises(RuntimeError, match="mine"), cached(model):
        raise RuntimeError("mine")
    assert kept(model.up) is None
    assert cache._ACTIVE == {}
