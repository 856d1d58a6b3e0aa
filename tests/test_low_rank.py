"""Linear layers whose components have a low rank."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from cases import RULES, SIZES
from safetensors.torch import load, save
from torch import nn

from nplex.algebra import quaternion
from nplex.nn import LearnedRule, Linear, LowRankLinear, share
from nplex.ops import low_rank as ops

DOUBLE = torch.float64


def largest(d_in, d_out, n):
    return min(-(-d_in // n), -(-d_out // n))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("d_in", "d_out"), SIZES)
def test_equals_torchs_layer_in_values_and_gradients(name, d_in, d_out):
    rule = RULES[name](dtype=DOUBLE)
    for rank in {1, largest(d_in, d_out, rule.n)}:
        layer = LowRankLinear(d_in, d_out, rule=copy.deepcopy(rule), low_rank=rank, dtype=DOUBLE)
        twin, x = layer.to_torch(), torch.randn(2, 3, d_in, dtype=DOUBLE, requires_grad=True)
        expected, found = twin(x), layer(x)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected)
        for_x, for_weight, for_bias = torch.autograd.grad(expected, [x, twin.weight, twin.bias], upstream)
        own = [p for key, p in layer.named_parameters() if key != "bias"]
        through_weight = torch.autograd.grad(layer.weight, own, for_weight)
        gradients = torch.autograd.grad(found, [x, layer.bias, *own], upstream)
        for one, other in zip(gradients, [for_x, for_bias, *through_weight], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["learned 3", "learned 8:24", "octonion"])
def test_is_the_linear_layer_with_the_components_multiplied_out(name):
    rule = RULES[name](dtype=DOUBLE)
    layer = LowRankLinear(23, 17, rule=rule, low_rank=2, dtype=DOUBLE)
    linear = Linear(23, 17, rule=RULES[name](dtype=DOUBLE), dtype=DOUBLE)
    linear.load_state_dict({"components": layer.components, "bias": layer.bias} | {
        f"rule.{key}": value for key, value in layer.rule.state_dict().items()
    })  # fmt: skip
    x = torch.randn(5, 23, dtype=DOUBLE)
    torch.testing.assert_close(layer(x), linear(x))
    assert torch.linalg.matrix_rank(layer.components).tolist() == [2] * rule.n


@pytest.mark.parametrize("name", RULES)
def test_parameters_are_those_of_the_factors_and_the_rule(name):
    rule = RULES[name]()
    layer = LowRankLinear(12 * rule.n, 7 * rule.n, rule=rule, low_rank=3)
    learned = sum(p.numel() for p in rule.parameters())
    assert sum(p.numel() for p in layer.parameters()) == 3 * 19 * rule.n + learned + 7 * rule.n


def test_nothing_large_is_built():
    """With 2 of 128 ranks no tensor reaches the size of the components, let alone of the weight."""
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            sizes.append(made.numel() if isinstance(made, torch.Tensor) else 0)
            return made

    layer, x = LowRankLinear(512, 512, rule=4, low_rank=2), torch.randn(2, 512)
    with Sizes():
        layer(x).sum().backward()
    assert len(sizes) > 10
    assert max(sizes) < 512 * 512 // 4 // 16


@pytest.mark.parametrize("name", ["learned 1", "learned 3", "learned 4:7", "octonion"])
@pytest.mark.parametrize(("d_in", "d_out"), [(512, 512), (300, 1100), (1201, 64)])
@pytest.mark.parametrize("rank", [2, 8])
def test_starts_with_the_variance_of_torchs_layer(name, d_in, d_out, rank):
    weights = [LowRankLinear(d_in, d_out, rule=RULES[name](), low_rank=rank).weight for _ in range(6)]
    ratio = (torch.stack(weights).std() * (3 * d_in) ** 0.5).item()
    assert 0.93 < ratio < 1.07
    layer = LowRankLinear(d_in, d_out, rule=RULES[name](), low_rank=rank)
    assert 0.9 < (layer.left.norm() / layer.right.norm()).item() < 1.1
    assert 0.8 / d_in**0.5 < layer.bias.abs().max().item() <= 1 / d_in**0.5


@pytest.mark.parametrize("shape", [(18,), (0, 18), (5, 18), (2, 3, 4, 18)])
def test_any_batch_shape(shape):
    layer = LowRankLinear(18, 25, rule=4, low_rank=2, dtype=DOUBLE)
    x = torch.randn(shape, dtype=DOUBLE)
    torch.testing.assert_close(layer(x), layer.to_torch()(x))


def test_names_repr_and_no_bias():
    layer = LowRankLinear(16, 24, False, rule=4, low_rank=3)
    assert set(layer.state_dict()) == {"rule.table", "left", "right"}
    assert "in_features=16, out_features=24, bias=False, low_rank=3, n=4" in repr(layer)
    assert layer.to_torch().bias is None
    for name in ("weight", "components"):
        with pytest.raises((AttributeError, KeyError), match=name):
            setattr(layer, name, nn.Parameter(torch.zeros(2)))
    base = nn.Module()
    base.layer = LowRankLinear(16, 24, rule=share(base, LearnedRule(4)), low_rank=3)
    assert "n=4, rule=shared" in repr(base.layer)
    assert sorted(base.state_dict()) == ["layer.bias", "layer.left", "layer.right", "rule.table"]


@pytest.mark.parametrize("name", ["learned 3", "learned 4:7", "quaternion"])
def test_survives_state_dict_deepcopy_pickle_and_safetensors(name):
    layer, x = LowRankLinear(23, 17, rule=RULES[name](), low_rank=2), torch.randn(4, 23)
    fresh = LowRankLinear(23, 17, rule=RULES[name](), low_rank=2)
    fresh.load_state_dict(load(save(layer.state_dict())))
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))


def test_meta_device_seed_and_types():
    with torch.device("meta"):
        layer = LowRankLinear(16, 24, rule=4, low_rank=2)
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    for part in layer.modules():
        torch.manual_seed(3)
        part.reset_parameters()
    assert 0.3 < layer(torch.randn(300, 16)).std().item() < 1
    torch.manual_seed(5)
    first = LowRankLinear(16, 24, rule=4, low_rank=2)
    torch.manual_seed(5)
    assert torch.equal(first.weight, LowRankLinear(16, 24, rule=4, low_rank=2).weight)
    x = torch.randn(5, 16)
    expected = first(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = first(x)
        assert found.dtype == torch.bfloat16
        found.float().sum().backward()
    assert first.left.grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
    assert first.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_vmap_and_second_derivatives():
    layer = LowRankLinear(9, 8, rule=LearnedRule(2, 3, dtype=DOUBLE), low_rank=2, dtype=DOUBLE)
    x = torch.randn(3, 2, 9, dtype=DOUBLE, requires_grad=True)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x))
    factors = [p.detach().requires_grad_() for p in (layer.left, layer.right)]
    table = layer.rule().table().detach().requires_grad_()
    small = x[0, :1].detach().requires_grad_()
    torch.autograd.gradgradcheck(lambda *t: ops.product(*t, out_features=8), (small, table, *factors))


def test_like_copies_sizes_type_and_mode():
    torchs = nn.Linear(16, 24, bias=False, dtype=DOUBLE).eval()
    layer = LowRankLinear.like(torchs, rule=quaternion, low_rank=3)
    assert (layer.training, layer.bias, layer.left.dtype, layer.low_rank) == (False, None, DOUBLE, 3)
    assert repr(layer.to_torch()) == repr(torchs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 0}, "rule must be a positive integer, an Algebra or a Rule, got 0"),
        ({"rule": 16}, "n = 16 is larger than in_features = 8"),
        ({"low_rank": 0}, "low_rank must be a positive integer, got 0"),
        ({"low_rank": True}, "low_rank must be a positive integer, got True"),
        (
            {"low_rank": 5},
            "low_rank = 5 is larger than a component of 6 x 4 can have: take 4 or less, or nplex",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LowRankLinear(**({"in_features": 8, "out_features": 12, "rule": 2, "low_rank": 2} | arguments))


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"input must have 10 numbers in its last dimension, got shape \(3, 9\)"):
        LowRankLinear(10, 8, rule=4, low_rank=1)(torch.zeros(3, 9))
    with pytest.raises(ValueError, match=r"x must have at most 8 numbers in its last dimension, got shape \(3, 9\)"):
        ops.product(torch.ones(3, 9), torch.ones(2, 2, 2), torch.ones(2, 3, 1), torch.ones(2, 1, 4), out_features=6)


PROGRAM = """
import torch
from nplex.nn import Bilinear, Embedding, EmbeddingBag, LearnedRule, LowRankLinear
torch.manual_seed(0)
torch.set_num_threads(1)
ids = torch.randint(9, (3, 7))
for layer, inputs in (
    (LowRankLinear(9, 10, rule=LearnedRule(4, 7), low_rank=2), (torch.randn(5, 9),)),
    (Bilinear(9, 3, 10, rule=4), (torch.randn(5, 9), torch.randn(5, 3))),
    (Embedding(9, 7, padding_idx=2, rule=4), (ids,)),
    (Embedding(9, 7, max_norm=2.0, scale_grad_by_freq=True, rule=LearnedRule(4, 7)), (ids,)),
    (EmbeddingBag(30, 7, rule=4), (ids,)),
):
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), layer(*inputs))
    wanted = list(layer.parameters())
    for one, other in zip(*(torch.autograd.grad(f(*inputs).square().sum(), wanted) for f in (compiled, layer))):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    batch = torch.export.Dim("batch")
    program = torch.export.export(layer, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)).module()
    longer = [torch.cat([x, x, x]) for x in inputs]
    torch.testing.assert_close(program(*longer), layer(*longer))
    print("ok")
"""


@pytest.mark.slow
def test_small_layers_are_compiled_in_one_graph_and_exported():
    """In a fresh process, without the annotations' checks, which torch.compile cannot trace."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=400, check=False)
    assert done.stdout.count("ok") == 5, done.stderr[-3000:]
