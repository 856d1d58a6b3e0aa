import copy
import pickle

import pytest
import torch
from cases import RULES, SIZES, methods_for
from safetensors.torch import load, save
from scipy.spatial.transform import Rotation
from torch import nn

from nplex.algebra import octonion, quaternion
from nplex.nn import FixedRule, LearnedRule, Linear

NAMES = list(RULES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_equals_the_torch_layer_with_its_weight(name, d_in, d_out):
    layer = Linear(d_in, d_out, rule=RULES[name](dtype=torch.float64), dtype=torch.float64)
    x = torch.randn(2, 3, d_in, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    for method in methods_for(layer.rule):
        layer.method = method
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.to_torch()(x), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("d_in", "d_out"), [(512, 512), (300, 1100), (1201, 64)])
def test_starts_with_the_variance_of_torchs_layer(name, d_in, d_out):
    x = torch.randn(512, d_in)
    ours = torch.stack([Linear(d_in, d_out, rule=RULES[name]())(x).std() for _ in range(3)]).mean()
    torchs = torch.stack([nn.Linear(d_in, d_out)(x).std() for _ in range(3)]).mean()
    assert 0.9 < (ours / torchs).item() < 1.1


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_one_nth_and_the_rule(name):
    rule = RULES[name]()
    layer = Linear(48 * rule.n, 32 * rule.n, rule=rule)
    learned = sum(p.numel() for p in rule.parameters())
    assert sum(p.numel() for p in layer.parameters()) == 48 * 32 * rule.n + 32 * rule.n + learned
    assert learned == (
        0 if isinstance(rule, FixedRule) else rule.n**3 if rule.rank is None else 3 * rule.n * rule.rank
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name):
    layer = Linear(23, 17, rule=RULES[name]())
    layer(torch.randn(5, 23)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_survives_state_dict_deepcopy_pickle_and_safetensors(name):
    layer, x = Linear(23, 17, rule=RULES[name]()), torch.randn(4, 23)
    fresh = Linear(23, 17, rule=RULES[name]())
    fresh.load_state_dict(load(save(layer.state_dict())))
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize("name", NAMES)
def test_meta_device_then_first_values(name):
    with torch.device("meta"):
        layer = Linear(16, 24, rule=RULES[name]())
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    for module in layer.modules():
        module.reset_parameters()
    output = layer(torch.randn(300, 16))
    assert 0.4 < output.std().item() < 0.8


def test_skip_init_and_device_and_dtype():
    layer = nn.utils.skip_init(Linear, 8, 8, rule=2, dtype=torch.bfloat16)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer.components.device.type == "cpu"
    assert Linear(8, 8, rule=quaternion, device="meta").rule().decode.is_meta


@pytest.mark.parametrize("name", NAMES)
def test_torch_manual_seed_reproduces(name):
    def weight():
        torch.manual_seed(5)
        return Linear(16, 16, rule=RULES[name]()).weight

    assert torch.equal(weight(), weight())


@pytest.mark.parametrize("shape", [(16,), (0, 16), (5, 16), (2, 3, 4, 16)])
def test_any_batch_shape(shape):
    assert Linear(16, 24, rule=4)(torch.zeros(shape)).shape == (*shape[:-1], 24)


def test_no_bias():
    layer = Linear(16, 24, False, rule=4)
    assert layer.bias is None
    assert "bias" not in layer.state_dict()
    assert layer.to_torch().bias is None
    assert torch.equal(layer(torch.zeros(2, 16)), torch.zeros(2, 24))


def test_repr_says_what_it_is():
    text = repr(Linear(16, 24, rule=LearnedRule(4, 7)))
    assert "in_features=16, out_features=24, bias=True, n=4" in text
    assert "LearnedRule(n=4, rank=7)" in text
    assert "FixedRule(quaternion, rank=8)" in repr(Linear(16, 24, rule=quaternion))


def test_state_dict_has_the_documented_names():
    assert set(Linear(8, 8, rule=2).state_dict()) == {"rule.table", "components", "bias"}
    factors = {"rule.encode_component", "rule.encode_input", "rule.decode"}
    assert set(Linear(8, 8, rule=LearnedRule(2, 3)).state_dict()) == factors | {"components", "bias"}


def test_rule_of_one_is_torchs_layer():
    layer, x = Linear(6, 5, rule=1), torch.randn(9, 6)
    torchs = nn.Linear(6, 5)
    torchs.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    torch.testing.assert_close(layer(x), torchs(x))


def test_weight_is_read_only():
    layer = Linear(8, 8, rule=2)
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(torch.zeros(8, 8))


def test_quaternion_layer_is_hamiltons_product_computed_by_scipy():
    layer = Linear(4, 4, False, dtype=torch.float64, rule=quaternion)
    left, right = torch.randn(4, dtype=torch.float64), torch.randn(50, 4, dtype=torch.float64)
    left, right = left / left.norm(), right / right.norm(dim=1, keepdim=True)
    with torch.no_grad():
        layer.components.copy_(left[:, None, None])
    last = [1, 2, 3, 0]  # scipy writes the real part last
    product = Rotation.from_quat(left[last].numpy()) * Rotation.from_quat(right[:, last].numpy())
    expected = torch.from_numpy(product.as_quat())[:, [3, 0, 1, 2]]
    found = layer(right)
    sign = (found * expected).sum(1, keepdim=True).sign()  # a rotation has two quaternions
    torch.testing.assert_close(found, sign * expected)


def test_quaternion_layer_is_the_plain_formula_on_blocks():
    layer = Linear(4 * 3, 4 * 2, False, rule=quaternion, dtype=torch.float64)
    x = torch.randn(7, 12, dtype=torch.float64)
    (r, i, j, k), (a, b, c, d) = layer.components, x.chunk(4, -1)
    expected = torch.cat(
        [
            a @ r.mT - b @ i.mT - c @ j.mT - d @ k.mT,
            b @ r.mT + a @ i.mT + d @ j.mT - c @ k.mT,
            c @ r.mT - d @ i.mT + a @ j.mT + b @ k.mT,
            d @ r.mT + c @ i.mT - b @ j.mT + a @ k.mT,
        ],
        -1,
    )
    torch.testing.assert_close(layer(x), expected)


def hamilton(p, q):
    a, b, c, d = p
    e, f, g, h = q
    return torch.stack([
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    ])


def test_octonion_layer_is_pairs_of_quaternions():
    layer = Linear(8, 8, False, dtype=torch.float64, rule=octonion)
    x = torch.randn(8, dtype=torch.float64)
    left = layer.components[:, 0, 0]
    star = torch.tensor([1.0, -1, -1, -1], dtype=torch.float64)
    (a, b), (c, d) = left.chunk(2), x.chunk(2)
    expected = torch.cat([hamilton(a, c) - hamilton(star * d, b), hamilton(d, a) + hamilton(b, star * c)])
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 0}, "rule must be a positive integer, an Algebra or a Rule, got 0"),
        ({"rule": -4}, "rule must be a positive integer, an Algebra or a Rule, got -4"),
        ({"rule": True}, "rule must be a positive integer, an Algebra or a Rule, got True"),
        (
            {"rule": "four"},
            "a rule is dense, a number n .*got 'four'",
        ),
        ({"rule": 2.0}, "rule must be a positive integer, an Algebra or a Rule, got 2.0"),
        ({"rule": 16}, "n = 16 is larger than in_features = 8: take a rule with n of 8 or less"),
        ({"rule": 10, "in_features": 12}, "n = 10 is larger than out_features = 8"),
        ({"rule": 2, "in_features": 0}, "in_features must be a positive integer, got 0"),
        ({"rule": 2, "out_features": True}, "out_features must be a positive integer, got True"),
        ({"rule": 2, "method": "quick"}, "method must be one of auto"),
        ({"rule": 2, "method": "bilinear"}, "needs a rule held as factors, got a full table"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, unchecked):
    with pytest.raises((ValueError, TypeError), match=message):
        Linear(**({"in_features": 8, "out_features": 8} | arguments))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"x must have 10 numbers in its last dimension, got shape \(3, 9\)"):
        Linear(10, 8, rule=4)(torch.zeros(3, 9))
