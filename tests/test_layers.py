"""One suite for every layer: each behaves as torch's twin that holds its weights, with 1/n of the parameters."""

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import RULES
from layer_cases import LAYERS
from safetensors.torch import load, save
from torch.utils._pytree import tree_leaves, tree_map

from nplex import algebra, nn
from nplex.nn import FixedRule, LearnedRule, Rule, missing_rules, share

NAMES = list(LAYERS)
SOME_RULES = ["learned 2", "learned 3", "learned 5", "learned 3:2", "learned 4:7", "quaternion", "from quaternion:8"]
DOUBLE = torch.float64


def make(name, rule, *, width=10, dtype=DOUBLE, **kw):
    """A layer of the table, with inputs for it."""
    case = LAYERS[name]
    layer = case.make(width, rule=rule, dtype=dtype, **kw)
    return layer, case.inputs(width, dtype)


def outputs(layer, inputs):
    return [leaf for leaf in tree_leaves(layer(*inputs)) if leaf is not None]


def rules_of(layer):
    return [module for module in layer.modules() if isinstance(module, Rule)]


def floating(inputs):
    return [x for x in tree_leaves(inputs) if x.is_floating_point()]


@pytest.mark.parametrize("rule", SOME_RULES)
@pytest.mark.parametrize("name", NAMES)
def test_equals_torchs_layer_in_values_and_gradients(name, rule):
    layer, inputs = make(name, RULES[rule](dtype=DOUBLE))
    twin = layer.to_torch()
    assert type(twin).__name__ == type(layer).__name__
    assert not rules_of(twin)
    wanted = [x.requires_grad_() for x in floating(inputs)]
    ours, theirs = outputs(layer, inputs), outputs(twin, inputs)
    torch.testing.assert_close(ours, theirs)
    if wanted:
        upstream = [torch.randn_like(y) for y in ours]
        torch.testing.assert_close(
            torch.autograd.grad(ours, wanted, upstream), torch.autograd.grad(theirs, wanted, upstream)
        )


@pytest.mark.parametrize("name", NAMES)
def test_its_gradients_are_those_of_finite_differences(name):
    layer, inputs = make(name, LearnedRule(2, 3, dtype=DOUBLE), width=4)
    torch.manual_seed(1)
    direction = {key: torch.randn_like(p) for key, p in layer.named_parameters()}

    def loss(step):
        moved = {key: (p + step * direction[key]).detach() for key, p in layer.named_parameters()}
        found = torch.func.functional_call(layer, moved, inputs) if step else layer(*inputs)
        return sum(leaf.square().sum() for leaf in tree_leaves(found) if leaf is not None)

    gradients = torch.autograd.grad(loss(0), list(layer.parameters()), materialize_grads=True)
    slope = sum((g * direction[key]).sum() for g, (key, _) in zip(gradients, layer.named_parameters(), strict=True))
    with torch.no_grad():
        measured = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close(slope, measured, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_one_nth_and_the_rules(name, n):
    layer, _ = make(name, n, width=4 * n)
    rules = sum(p.numel() for rule in rules_of(layer) for p in rule.parameters())
    dense = list(layer.to_torch().parameters())
    matrices = sum(p.numel() for p in dense if p.ndim > 1 and min(p.shape[:2]) > 1)
    rest = sum(p.numel() for p in dense) - matrices
    assert sum(p.numel() for p in layer.parameters()) == matrices // n + rest + rules


@pytest.mark.parametrize("rule", ["learned 3", "learned 4:7"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name, rule):
    layer, inputs = make(name, RULES[rule](dtype=DOUBLE))
    if "Embedding" in name:
        inputs = (torch.arange(30).reshape(2, 15),)
    torch.manual_seed(3)
    sum((y * torch.randn_like(y)).sum() for y in outputs(layer, inputs)).backward()
    missing = [key for key, p in layer.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert not missing


@pytest.mark.parametrize("rule", ["learned 3", "learned 4:7", "octonion"])
@pytest.mark.parametrize("name", NAMES)
def test_starts_with_the_variance_of_torchs_layer(name, rule):
    torch.manual_seed(0)
    layer, _ = make(name, RULES[rule](dtype=DOUBLE), width=48)
    twin = layer.to_torch()
    ours = {key: p.detach().clone() for key, p in twin.named_parameters()}
    for module in reversed(list(twin.modules())):  # the whole after its parts
        for reset in ("reset_parameters", "_reset_parameters"):
            if hasattr(module, reset):
                getattr(module, reset)()
    for key, p in twin.named_parameters():
        if p.ndim > 1 and p.std() > 0:
            assert 0.85 < (ours[key].std() / p.std()).item() < 1.15, key


@pytest.mark.parametrize("rule", ["learned 3", "learned 4:7", "quaternion"])
@pytest.mark.parametrize("name", NAMES)
def test_survives_state_dict_deepcopy_pickle_and_safetensors(name, rule):
    layer, inputs = make(name, RULES[rule](dtype=DOUBLE))
    fresh, _ = make(name, RULES[rule](dtype=DOUBLE))
    fresh.load_state_dict(load(save(layer.state_dict())))
    expected = outputs(layer, inputs)
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert all(map(torch.equal, outputs(other, inputs), expected))


@pytest.mark.parametrize("name", NAMES)
def test_meta_device_then_first_values(name):
    with torch.device("meta"):
        layer, _ = make(name, 3)
    assert all(p.is_meta for p in layer.parameters())
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(torch.nan)
    for module in layer.modules():
        for reset in ("reset_parameters", "_reset_parameters"):
            if hasattr(module, reset):
                getattr(module, reset)()
    assert all(p.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_device_and_dtype_and_seed(name):
    assert {p.dtype for p in make(name, 3, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in make(name, 3, device="meta")[0].parameters())

    def numbers():
        torch.manual_seed(5)
        return list(make(name, 3)[0].parameters())

    assert all(map(torch.equal, numbers(), numbers()))


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("rule", ["learned 3", "learned 4:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_smaller_types(name, dtype, rule):
    layer, inputs = make(name, RULES[rule](dtype=DOUBLE))
    exact = outputs(layer, inputs)
    found = outputs(layer.to(dtype), tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs))
    assert {y.dtype for y in found} == {dtype}
    tolerance = 1e-4 if dtype == torch.float32 else 0.15
    for y, expected in zip(found, exact, strict=True):
        assert (y - expected).norm() <= tolerance * max(expected.norm(), 1)


@pytest.mark.parametrize("rule", ["learned 3", "learned 4:7"])
@pytest.mark.parametrize("name", [name for name in NAMES if LAYERS[name].autocasts])
def test_autocast_gives_the_type_of_torchs_layer(name, rule):
    layer, inputs = make(name, RULES[rule](), dtype=torch.float32)
    twin = layer.to_torch()
    exact = outputs(layer, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = outputs(layer, inputs), outputs(twin, inputs)
        assert [y.dtype for y in found] == [y.dtype for y in theirs]
        sum(y.float().square().sum() for y in found).backward()
    for y, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
    assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [name for name in NAMES if LAYERS[name].vmaps])
def test_vmap_over_samples(name):
    layer, inputs = make(name, LearnedRule(3, 5, dtype=DOUBLE))
    several = [torch.stack([x, 2 * x]) for x in inputs]
    found = tree_leaves(torch.vmap(lambda *x: layer(*x), randomness="error")(*several))
    one, two = outputs(layer, inputs), outputs(layer, [2 * x for x in inputs])
    for y, first, second in zip([leaf for leaf in found if leaf is not None], one, two, strict=True):
        torch.testing.assert_close(y, torch.stack([first, second]))


@pytest.mark.parametrize("name", NAMES)
def test_like_makes_a_fresh_twin(name):
    layer, inputs = make(name, 3)
    twin = layer.to_torch().eval()
    fresh = type(layer).like(twin, rule=algebra.quaternion)
    assert not fresh.training
    assert {p.dtype for p in fresh.parameters()} == {DOUBLE}
    assert isinstance(rules_of(fresh)[0], FixedRule)
    assert [y.shape for y in outputs(fresh, inputs)] == [y.shape for y in outputs(layer, inputs)]
    assert {key: p.shape for key, p in fresh.to_torch().named_parameters()} == {
        key: p.shape for key, p in twin.named_parameters()
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_shared_rule_is_one(name):
    base = torch.nn.Module()
    rule = share(base, LearnedRule(3, dtype=DOUBLE))
    base.first, inputs = make(name, rule)
    base.second, _ = make(name, rule)
    assert rules_of(base) == [rule]
    assert not missing_rules(base)
    sum(y.square().sum() for layer in (base.first, base.second) for y in outputs(layer, inputs)).backward()
    assert rule.table.grad.abs().sum() > 0
    twin = copy.deepcopy(base)
    assert rules_of(twin) == [twin.rule]
    assert all(map(torch.equal, outputs(twin.second, inputs), outputs(base.second, inputs)))
    assert "rule=shared" in repr(base.first)


@pytest.mark.parametrize("name", NAMES)
def test_the_signature_is_torchs_and_a_rule(name):
    kind = type(make(name, 3)[0])
    ours = inspect.signature(kind).parameters
    theirs = inspect.signature(getattr(torch.nn, kind.__name__)).parameters
    positional = [key for key, p in ours.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    torchs = [key for key, p in theirs.items() if p.kind is p.POSITIONAL_OR_KEYWORD and not key.startswith("_")]
    if kind.__name__ not in {"RNN", "LSTM", "GRU"}:  # torch takes *args there
        assert positional == torchs
        for key in positional:
            assert ours[key].default == theirs[key].default, key
    assert ours["rule"].kind is ours["rule"].KEYWORD_ONLY
    assert ours["rule"].default is ours["rule"].empty
    is_container = kind.__name__.startswith("Transformer")  # these compute nothing themselves
    assert issubclass(kind, getattr(torch.nn, kind.__name__)) == is_container
    ours, theirs = (inspect.signature(k.forward).parameters for k in (kind, getattr(torch.nn, kind.__name__)))
    assert list(ours) == list(theirs)


@pytest.mark.parametrize("name", NAMES)
def test_an_impossible_rule_is_refused(name):
    with pytest.raises(ValueError, match=r"n = 97 is larger than"):
        make(name, 97)
    for wrong in (0, True):
        with pytest.raises((TypeError, ValueError), match="rule must be a positive integer, an Algebra or a Rule"):
            make(name, wrong)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", NAMES)
def test_its_torch_layer_is_exact_under_autocast(name):
    layer, _ = make(name, 3)
    expected = list(layer.to_torch().parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, layer.to_torch().parameters(), expected))


@pytest.mark.slow
def test_compiled_in_one_graph_and_exported():
    program = Path(__file__).parent / "programs" / "compiled_layers.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("ok ") == 2 * sum(case.compiles for case in LAYERS.values())


def test_every_public_layer_is_in_the_table():
    layers = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name)) and hasattr(torch.nn, name)}
    stacks = {"TransformerEncoder", "TransformerDecoder"}  # of a layer that is given: tested as parts of Transformer
    assert layers - stacks == {name.partition(",")[0] for name in LAYERS}


@pytest.mark.parametrize(
    ("holder", "name"),
    [
        (torch.nn.MultiheadAttention(2, 1), "_qkv_same_embed_dim"),
        (torch.nn.Conv2d(1, 1, 1), "_reversed_padding_repeated_twice"),
        (torch.nn.LSTM(1, 1), "_flat_weights"),
        (torch.nn.LSTM(1, 1), "_update_flat_weights"),
        (torch.nn.Transformer, "_reset_parameters"),
        *((torch.nn.Module(), name) for name in ("_parameters", "_buffers", "_modules", "_apply")),
        (torch.nn.Module(), "_load_from_state_dict"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_private_attributes_of_torchs_layers_that_twins_answer_to_still_exist(holder, name):
    assert hasattr(holder, name)
