"""The layer of two inputs; what every layer must do is asked in test_layers.py."""

import copy
import pickle

import pytest
import torch
from cases import RULES, methods_for
from torch import nn

from nplex.algebra import quaternion
from nplex.nn import Bilinear, LearnedRule
from nplex.nn import bilinear as module

DOUBLE = torch.float64
SIZES = [(8, 8, 8), (9, 3, 17), (23, 5, 8), (16, 1, 10)]


def inputs(layer, *batch, dtype=DOUBLE):
    sizes = layer.in1_features, layer.in2_features
    return [torch.randn(*batch, size, dtype=dtype, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_torchs_layer_in_values_and_gradients(sizes, name):
    layer = Bilinear(*sizes, rule=RULES[name](dtype=DOUBLE), dtype=DOUBLE)
    twin, xs = layer.to_torch(), inputs(layer, 2, 3)
    expected = twin(*xs)
    upstream = torch.randn_like(expected)
    *dense, weight, bias = torch.autograd.grad(expected, [*xs, twin.weight, twin.bias], upstream)
    own = {key: p for key, p in layer.named_parameters() if key != "bias"}
    through_weight = torch.autograd.grad(layer.weight, list(own.values()), weight)
    for method in methods_for(layer.rule):
        layer.method = method
        found = layer(*xs)
        torch.testing.assert_close(found, expected)
        gradients = torch.autograd.grad(found, [*xs, layer.bias, *own.values()], upstream)
        for one, other in zip(gradients, [*dense, bias, *through_weight], strict=True):
            torch.testing.assert_close(one, other)


def test_is_the_sum_it_says():
    layer = Bilinear(6, 3, 4, rule=2, dtype=DOUBLE)
    x1, x2 = inputs(layer, 5)
    weight = sum(
        torch.stack([torch.kron(layer.rule.table[k], layer.components[k, 0, ..., c]) for c in range(3)], -1)
        for k in range(2)
    )
    torch.testing.assert_close(layer.weight, weight)
    torch.testing.assert_close(layer(x1, x2), torch.einsum("tb,obc,tc->to", x1, weight, x2) + layer.bias)


def test_many_pairs_are_not_written_down(monkeypatch):
    layer = Bilinear(9, 3, 8, rule=4, dtype=DOUBLE)
    xs = inputs(layer, 5)
    expected = layer(*xs)
    monkeypatch.setattr(module, "MOST_PAIRS", 5 * 9 * 3 - 1)
    monkeypatch.setattr(module, "product", None)
    torch.testing.assert_close(layer(*xs), expected)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3, 4)])
def test_any_batch_shape(batch):
    layer = Bilinear(9, 3, 10, rule=4, dtype=DOUBLE)
    xs = inputs(layer, *batch)
    torch.testing.assert_close(layer(*xs), layer.to_torch()(*xs))


@pytest.mark.parametrize("name", ["learned 3", "learned 4:7", "octonion"])
def test_starts_with_the_variance_of_torchs_layer(name):
    layer, twin = Bilinear(90, 16, 64, rule=RULES[name]()), nn.Bilinear(90, 16, 64)
    assert 0.95 < (layer.weight.std() / twin.weight.std()).item() < 1.05
    assert 0.7 / 90**0.5 < layer.bias.abs().max().item() <= 1 / 90**0.5


def test_parameters_names_and_repr():
    layer = Bilinear(16, 3, 24, rule=4)
    assert sum(p.numel() for p in layer.parameters()) == 16 * 3 * 24 // 4 + 4**3 + 24
    assert set(layer.state_dict()) == {"rule.table", "components", "bias"}
    assert "in1_features=16, in2_features=3, out_features=24, bias=True, n=4" in repr(layer)
    plain = Bilinear(16, 3, 24, False, rule=4)
    assert plain.bias is None
    assert plain.to_torch().bias is None
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(layer.weight)


def test_survives_copies_and_files():
    layer = Bilinear(9, 3, 10, rule=LearnedRule(4, 7, dtype=DOUBLE), dtype=DOUBLE)
    xs = inputs(layer, 4)
    fresh = Bilinear(9, 3, 10, rule=LearnedRule(4, 7, dtype=DOUBLE), dtype=DOUBLE)
    fresh.load_state_dict(layer.state_dict())
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*xs), layer(*xs))


def test_smaller_types_and_autocast():
    layer = Bilinear(16, 5, 12, rule=LearnedRule(4, 7))
    xs = [x.float() for x in inputs(layer, 4)]
    expected = layer(*xs)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(*xs)
        assert found.dtype == layer.to_torch()(*xs).dtype == torch.float32
        torch.testing.assert_close(found, expected)
        assert layer(xs[0].bfloat16(), xs[1]).dtype == torch.float32  # as torch has it on an accelerator
    found = layer.bfloat16()(*(x.bfloat16() for x in xs))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_vmap_over_samples():
    layer = Bilinear(9, 3, 10, rule=LearnedRule(4, 7, dtype=DOUBLE), dtype=DOUBLE)
    xs = inputs(layer, 4)
    torch.testing.assert_close(torch.vmap(layer)(*xs), layer(*xs))


def test_like_copies_every_option():
    torchs = nn.Bilinear(9, 3, 10, bias=False, dtype=DOUBLE).eval()
    layer = Bilinear.like(torchs, rule=quaternion)
    assert (layer.training, layer.bias, layer.components.dtype) == (False, None, DOUBLE)
    assert repr(layer.to_torch()) == repr(torchs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 0}, "rule must be a positive integer, an Algebra or a Rule, got 0"),
        ({"rule": 16}, "n = 16 is larger than in1_features = 8"),
        ({"rule": 2, "in2_features": 0}, "in2_features must be a positive integer, got 0"),
        ({"rule": 10, "in1_features": 12}, "n = 10 is larger than out_features = 8"),
        ({"rule": 2, "method": "bilinear"}, "needs a rule held as factors"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Bilinear(**({"in1_features": 8, "in2_features": 2, "out_features": 8} | arguments))


@pytest.mark.parametrize("shapes", [((4, 9), (4, 2)), ((4, 8), (4, 3)), ((4, 9), (5, 3)), ((9,), (1, 3))])
def test_wrong_input_is_named(shapes, unchecked):
    with pytest.raises(ValueError, match=r"inputs must have shapes \(\*, 9\) and \(\*, 3\) with the same \*, got"):
        Bilinear(9, 3, 8, rule=4)(*map(torch.zeros, shapes))
