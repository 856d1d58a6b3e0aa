"""Convolutions and transposed ones; what every layer must do is asked in test_layers.py."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from cases import RULES
from torch import nn

from nplex.algebra import quaternion
from nplex.nn import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    FixedRule,
    LearnedRule,
    Linear,
)

DOUBLE = torch.float64
SPACE = {1: (11,), 2: (9, 8), 3: (6, 5, 7)}
CONVS = {1: Conv1d, 2: Conv2d, 3: Conv3d}
TRANSPOSED = {1: ConvTranspose1d, 2: ConvTranspose2d, 3: ConvTranspose3d}
SOME_RULES = ["learned 1", "learned 3", "learned 5", "learned 3:2", "learned 4:7", "quaternion", "from quaternion:8"]
# channels, dimensions, options: what a convolution can be asked for
GRIDS = {
    "plain 1d": (1, 8, 12, {"kernel_size": 3}),
    "plain 3d": (3, 8, 8, {"kernel_size": 2}),
    "n divides no channels": (2, 9, 7, {"kernel_size": (3, 2)}),
    "kernel 1": (2, 10, 13, {"kernel_size": 1}),
    "groups with bias": (1, 22, 18, {"kernel_size": 3, "groups": 2}),
    "groups without bias": (2, 15, 21, {"kernel_size": 3, "groups": 3, "bias": False}),
    "stride": (2, 8, 9, {"kernel_size": 3, "stride": (2, 3)}),
    "stride and dilation": (1, 8, 9, {"kernel_size": 3, "stride": 2, "dilation": 2, "padding": 3}),
    "dilation": (3, 8, 7, {"kernel_size": (1, 2, 2), "dilation": (1, 2, 3)}),
    "same": (2, 8, 9, {"kernel_size": (3, 4), "padding": "same", "dilation": (2, 1)}),
    "valid": (1, 8, 9, {"kernel_size": 3, "padding": "valid"}),
    "padding": (2, 8, 9, {"kernel_size": 3, "padding": (2, 1)}),
    "reflect": (2, 8, 9, {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"}),
    "replicate": (3, 8, 9, {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"}),
    "circular": (1, 8, 9, {"kernel_size": 3, "padding": 2, "padding_mode": "circular"}),
    "circular and same": (2, 8, 9, {"kernel_size": 4, "padding": "same", "padding_mode": "circular"}),
}
TRANSPOSED_GRIDS = {
    "plain 1d": (1, 8, 12, {"kernel_size": 3}),
    "plain 3d": (3, 8, 8, {"kernel_size": 2, "bias": False}),
    "n divides no channels": (2, 9, 7, {"kernel_size": (3, 2)}),
    "groups": (1, 22, 18, {"kernel_size": 3, "groups": 2}),
    "stride and output padding": (2, 8, 9, {"kernel_size": 3, "stride": (2, 3), "output_padding": (1, 2)}),
    "everything": (2, 15, 21, {
        "kernel_size": (2, 3), "stride": 3, "padding": 1, "output_padding": 1, "groups": 3, "dilation": (1, 2),
    }),
}  # fmt: skip
CASES = [(CONVS, *grid) for grid in GRIDS.values()] + [(TRANSPOSED, *grid) for grid in TRANSPOSED_GRIDS.values()]
NAMES = [*GRIDS, *(f"transposed, {name}" for name in TRANSPOSED_GRIDS)]


def both(channels, dimensions, batch=(2,)):
    return torch.randn(*batch, channels, *SPACE[dimensions], dtype=DOUBLE, requires_grad=True)


def gradients(y, *inputs):
    torch.manual_seed(7)
    return torch.autograd.grad((y * torch.randn_like(y)).sum(), inputs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("rule", SOME_RULES)
@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_equals_torchs_layer_in_values_and_gradients(case, rule):
    layers, dimensions, inputs, outputs, options = case
    layer = layers[dimensions](inputs, outputs, **options, rule=RULES[rule](dtype=DOUBLE), dtype=DOUBLE)
    twin = layer.to_torch()
    x = both(inputs, dimensions)
    assert type(twin) is getattr(nn, type(layer).__name__)
    assert twin.weight.shape == layer.weight.shape
    torch.testing.assert_close(layer(x), twin(x))
    torch.testing.assert_close(layer(x[0]), twin(x)[0])
    torch.testing.assert_close(gradients(layer(x), x), gradients(twin(x), x))
    (dense,) = gradients(twin(x), twin.weight)
    expected = torch.autograd.grad(layer.weight, list(layer.parameters()), dense, allow_unused=True)
    found = torch.autograd.grad(
        layer(x), list(layer.parameters()), _upstream(layer(x)), allow_unused=True, materialize_grads=True
    )
    for (name, _), one, other in zip(layer.named_parameters(), found, expected, strict=True):
        torch.testing.assert_close(one, gradients(twin(x), twin.bias)[0] if name == "bias" else other)


def _upstream(y):
    torch.manual_seed(7)
    return torch.randn_like(y)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("rule", [name for name in RULES if RULES[name]().rank])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_bilinear_method_is_the_dense_one_in_values_and_gradients(grid, rule):
    dimensions, inputs, outputs, options = GRIDS[grid]
    made = RULES[rule](dtype=DOUBLE)
    if made.n > min(inputs, outputs) // options.get("groups", 1):
        pytest.skip("n is larger than a group")
    layer = CONVS[dimensions](inputs, outputs, **options, rule=made, dtype=DOUBLE)
    x = both(inputs, dimensions)
    wanted = [x, *layer.parameters()]
    layer.method = "dense"
    expected = layer(x)
    expected_gradients = gradients(expected, *wanted)
    layer.method = "bilinear"
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(gradients(layer(x), *wanted), expected_gradients)


@pytest.mark.parametrize("method", ["dense", "bilinear", "auto"])
def test_empty_batches_and_batches_of_one(method):
    layer = Conv2d(8, 9, 3, rule=LearnedRule(4, 7), method=method)
    assert layer(torch.zeros(0, 8, 5, 6)).shape == (0, 9, 3, 4)
    x = torch.randn(1, 8, 5, 6)
    torch.testing.assert_close(layer(x)[0], layer(x[0]))


@pytest.mark.parametrize("method", ["dense", "bilinear"])
def test_the_bias_counts(method):
    """A known bug of others: the bias is learned and never added."""
    layer, x = Conv2d(8, 8, 3, rule=quaternion, method=method), torch.randn(2, 8, 5, 5)
    before = layer(x)
    with torch.no_grad():
        layer.bias += torch.arange(8.0)
    torch.testing.assert_close(layer(x) - before, torch.arange(8.0)[:, None, None].expand_as(before))
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((8,), 2 * 3 * 3.0))


def test_the_bias_of_a_transposed_convolution_counts():
    layer, x = ConvTranspose1d(8, 8, 3, rule=quaternion), torch.randn(2, 8, 5)
    before = layer(x)
    with torch.no_grad():
        layer.bias += torch.arange(8.0)
    torch.testing.assert_close(layer(x) - before, torch.arange(8.0)[:, None].expand_as(before))


@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_the_rule_given_is_the_one_used(layers):
    """A known bug of others: the rule is taken and another one made."""
    rule = LearnedRule(4)
    layer = layers[1](8, 8, 3, rule=rule)
    x = torch.randn(2, 8, 5)
    assert layer.rule is rule
    layer(x).sum().backward()
    assert rule.table.grad.abs().sum() > 0
    with torch.no_grad():
        rule.table.zero_()
        layer.bias.zero_()
    assert layer(x).abs().max() == 0


def hamilton(p, q):
    """p q of two quaternions of numbers or tensors."""
    a, b, c, d = p
    e, f, g, h = q
    return torch.stack([
        a * e - b * f - c * g - d * h,
        a * f + b * e + c * h - d * g,
        a * g - b * h + c * e + d * f,
        a * h + b * g - c * f + d * e,
    ])


@pytest.mark.parametrize("method", ["dense", "bilinear"])
def test_a_quaternion_convolution_multiplies_as_hamilton(method):
    """Each place of the kernel multiplies each quaternion of channels (r, i, j, k one block each) from the left."""
    layer = Conv1d(8, 4, 3, bias=False, rule=quaternion, dtype=DOUBLE, method=method)
    x = torch.randn(5, 8, 7, dtype=DOUBLE)
    inputs = x.reshape(5, 4, 2, 7)  # component, channel
    expected = torch.zeros(5, 4, 5, dtype=DOUBLE)
    for place in range(3):
        for channel in range(2):
            left = layer.components[:, 0, 0, channel, place]
            expected += hamilton(left, inputs[:, :, channel, place : place + 5].unbind(1)).transpose(0, 1)
    torch.testing.assert_close(layer(x), expected)


def test_a_quaternion_transposed_convolution_multiplies_as_hamilton():
    layer = ConvTranspose1d(4, 4, 1, bias=False, rule=quaternion, dtype=DOUBLE)
    x = torch.randn(5, 4, 7, dtype=DOUBLE)
    expected = hamilton(layer.components[:, 0, 0, 0, 0], x.unbind(1)).transpose(0, 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("rule", SOME_RULES)
@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_with_a_kernel_of_one_it_is_the_linear_layer_at_each_place(layers, rule):
    """A known bug of others: the convolution in one dimension multiplies places instead of channels."""
    conv = layers[1](10, 13, 1, rule=RULES[rule](dtype=DOUBLE), dtype=DOUBLE)
    linear = Linear(10, 13, rule=RULES[rule](dtype=DOUBLE), dtype=DOUBLE)
    linear.rule.load_state_dict(conv.rule.state_dict())
    with torch.no_grad():
        components = conv.components[:, 0, ..., 0]
        linear.components.copy_(components if layers is CONVS else components.transpose(1, 2))
        linear.bias.copy_(conv.bias)
    x = torch.randn(3, 10, 6, dtype=DOUBLE)
    torch.testing.assert_close(conv(x), linear(x.transpose(1, 2)).transpose(1, 2))


def test_each_group_is_a_convolution_of_its_own():
    layer = Conv1d(12, 8, 3, groups=2, rule=4, dtype=DOUBLE)
    x = torch.randn(2, 12, 7, dtype=DOUBLE)
    parts = []
    for group in range(2):
        part = Conv1d(6, 4, 3, rule=4, dtype=DOUBLE)
        part.rule.load_state_dict(layer.rule.state_dict())
        with torch.no_grad():
            part.components.copy_(layer.components[:, group : group + 1])
            part.bias.copy_(layer.bias.chunk(2)[group])
        parts.append(part(x.chunk(2, 1)[group]))
    torch.testing.assert_close(layer(x), torch.cat(parts, 1))


def test_a_transposed_convolution_is_the_gradient_of_a_convolution():
    down = Conv2d(8, 12, 3, stride=2, bias=False, rule=LearnedRule(4, dtype=DOUBLE), dtype=DOUBLE)
    up = ConvTranspose2d(12, 8, 3, stride=2, bias=False, rule=4, dtype=DOUBLE)
    with torch.no_grad():
        up.rule.table.copy_(down.rule.table.transpose(1, 2))
        up.components.copy_(down.components)
    x = torch.randn(2, 8, 7, 9, dtype=DOUBLE, requires_grad=True)
    y = down(x)
    upstream = torch.randn_like(y)
    torch.testing.assert_close(up(upstream), torch.autograd.grad(y, x, upstream)[0])


@pytest.mark.parametrize("size", [[8, 14], (7, 15), (2, 9, 8, 14), torch.Size([8, 13])])
def test_output_size_is_torchs(size):
    layer = ConvTranspose2d(8, 9, 3, stride=(2, 3), padding=1, rule=4)
    x = torch.randn(2, 8, 4, 5)
    twin = layer.to_torch()
    assert layer(x, output_size=size).shape[2:] == torch.Size(size)[-2:]
    torch.testing.assert_close(layer(x, output_size=size), twin(x, output_size=list(size)))


def test_an_impossible_output_size_is_refused():
    layer = ConvTranspose1d(8, 8, 3, stride=2, rule=4)
    with pytest.raises(ValueError, match=r"valid sizes range from \[9\] to \[10\]"):
        layer(torch.zeros(2, 8, 4), output_size=[12])
    with pytest.raises(ValueError, match="output_size must have 1 or 3 elements"):
        layer(torch.zeros(2, 8, 4), output_size=[2, 9])


@pytest.mark.parametrize("name", ["learned 3", "learned 4:7", "octonion"])
@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_starts_with_the_variance_of_torchs_layer(layers, name):
    layer = layers[2](96, 32, 3, groups=2, rule=RULES[name]())
    twin = type(layer.to_torch())(96, 32, 3, groups=2)
    assert 0.93 < (layer.weight.std() / twin.weight.std()).item() < 1.07
    assert layer.bias.abs().max() <= layer.weight.std() * 3**0.5 * 1.1
    assert layer.bias.abs().max() > twin.bias.abs().max() * 0.8


@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_parameters_are_one_nth_and_the_rule(layers):
    layer = layers[3](16, 24, (3, 2, 1), groups=2, rule=4)
    assert sum(p.numel() for p in layer.parameters()) == 16 * 24 * 6 // 2 // 4 + 4**3 + 24


@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_names_copies_and_files(layers):
    layer, x = layers[2](9, 10, 3, rule=LearnedRule(4, 7)), torch.randn(2, 9, 5, 5)
    factors = {"rule.encode_component", "rule.encode_input", "rule.decode"}
    assert set(layer.state_dict()) == factors | {"components", "bias"}
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(layer.weight)


@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_meta_device_then_first_values(layers):
    with torch.device("meta"):
        layer = layers[1](16, 24, 3, rule=4)
    assert layer(torch.zeros(2, 16, 7, device="meta")).shape[:2] == (2, 24)
    layer.to_empty(device="cpu")
    for module in layer.modules():
        module.reset_parameters()
    assert 0.3 < layer(torch.randn(30, 16, 20))[:, :, 3:-3].std().item() < 1.2


@pytest.mark.parametrize("method", ["dense", "bilinear"])
def test_smaller_types(method):
    layer = Conv2d(16, 24, 3, rule=LearnedRule(4, 7), method=method)
    x = torch.randn(2, 16, 8, 8)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
        twin = layer.to_torch()
        assert twin.weight.dtype == torch.float32
        assert found.dtype == twin(x).dtype == torch.bfloat16
        found.float().square().sum().backward()
    assert layer.components.grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    found = layer.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_a_transposed_convolution_in_autocast():
    layer, x = ConvTranspose2d(16, 24, 3, rule=4), torch.randn(2, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("method", ["dense", "bilinear"])
def test_vmap_over_samples(method):
    layer = Conv1d(9, 8, 3, rule=LearnedRule(4, 7), method=method)
    x = torch.randn(3, 2, 9, 6)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(part) for part in x]))


@pytest.mark.parametrize("layers", [CONVS, TRANSPOSED])
def test_like_copies_every_option(layers):
    options = {"stride": 2, "padding": 1, "dilation": 2, "groups": 2, "bias": False, "dtype": DOUBLE}
    options |= {"output_padding": 1} if layers is TRANSPOSED else {"padding_mode": "circular"}
    kind = layers[2]
    torchs = getattr(nn, kind.__name__)(8, 12, (3, 4), **options).eval()
    layer = kind.like(torchs, rule=4)
    assert isinstance(layer, kind)
    assert not layer.training
    assert layer.bias is None
    assert layer.components.dtype == DOUBLE
    assert repr(layer.to_torch()) == repr(torchs)
    assert layer.extra_repr() == f"{torchs.extra_repr()}, n=4"


def test_a_convolution_of_rank_is_planned_by_its_sizes():
    """Auto is one of the two, by the sizes alone."""
    for channels in (8, 256):
        layer = Conv2d(channels, channels, 3, rule=LearnedRule(4, 4))
        x = torch.randn(1, channels, 6, 6)
        found = layer(x)
        results = []
        for method in ("dense", "bilinear"):
            layer.method = method
            results.append(torch.equal(layer(x), found))
        assert any(results)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (Conv1d, {"rule": 0}, "rule must be a positive integer, an Algebra or a Rule, got 0"),
        (Conv1d, {"rule": 16}, "n = 16 is larger than in_channels / groups = 8"),
        (Conv2d, {"rule": 8, "groups": 2}, "n = 8 is larger than in_channels / groups = 4"),
        (Conv2d, {"rule": 2, "groups": 3}, "in_channels must be divisible by groups"),
        (Conv2d, {"rule": 2, "method": "rule_first"}, "method of a convolution must be one of auto, dense, bilinear"),
        (Conv3d, {"rule": 2, "method": "bilinear"}, "needs a rule held as factors, got a full table"),
        (Conv1d, {"rule": 2, "padding": "full"}, "Invalid padding string 'full'"),
        (Conv1d, {"rule": 2, "padding": "same", "stride": 2}, "padding='same' is not supported for strided"),
        (Conv1d, {"rule": 2, "padding_mode": "mirror"}, "padding_mode must be one of"),
        (ConvTranspose1d, {"rule": 2, "padding_mode": "circular"}, 'Only "zeros" padding mode is supported'),
        (ConvTranspose2d, {"rule": 5, "groups": 2}, "n = 5 is larger than in_channels / groups = 4"),
        (
            ConvTranspose2d,
            {"rule": FixedRule(quaternion, dtype=DOUBLE)},
            "the rule is torch.float64 on cpu",
        ),
    ],
)
def test_wrong_arguments_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(8, 8, 3, **arguments)


@pytest.mark.parametrize("method", ["dense", "bilinear"])
@pytest.mark.parametrize("shape", [(2, 9, 5, 5), (2, 16, 5, 5), (5, 5), (8,), (1, 2, 8, 5, 5), (8, 2, 5, 5)])
def test_wrong_input_is_named(shape, method):
    layer = Conv2d(8, 8, 3, rule=LearnedRule(4, 7), method=method)
    with pytest.raises(ValueError, match=r"input must have shape \(batch, 8, \*, \*\) or \(8, \*, \*\), got \("):
        layer(torch.zeros(shape))


def test_wrong_input_of_a_transposed_convolution_is_named():
    with pytest.raises(ValueError, match=r"input must have shape \(batch, 8, \*\) or \(8, \*\), got \(2, 9, 5\)"):
        ConvTranspose1d(8, 8, 3, rule=4)(torch.zeros(2, 9, 5))


PROGRAM = """
import torch
from nplex.nn import Conv2d, ConvTranspose2d, LearnedRule
torch.manual_seed(0)
torch.set_num_threads(1)
for layer in (
    Conv2d(9, 10, 3, padding=1, padding_mode="circular", rule=4),
    Conv2d(8, 8, 3, groups=2, rule=LearnedRule(4, 7), method="bilinear"),
    ConvTranspose2d(9, 10, 3, stride=2, output_padding=1, rule=4),
):
    x = torch.randn(2, layer.in_channels, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    wanted = list(layer.parameters())
    for one, other in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (compiled(x), layer(x)))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    longer = torch.randn(5, *x.shape[1:])
    torch.testing.assert_close(program(longer), layer(longer))
    print("ok")
"""


@pytest.mark.slow
def test_compiled_in_one_graph_and_exported():
    """In a fresh process, without the annotations' checks, which torch.compile cannot trace."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=400, check=False)
    assert done.stdout.count("ok") == 3, done.stderr[-3000:]
