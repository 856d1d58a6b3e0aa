"""Embeddings and bags of them; what every layer must do is asked in test_layers.py."""

import copy
import pickle

import pytest
import torch
from cases import RULES
from safetensors.torch import load, save
from torch import nn
from torch.nn import functional as F

from nplex.algebra import quaternion
from nplex.nn import Embedding, EmbeddingBag, LearnedRule, share
from nplex.ops.lookup import look_up

DOUBLE = torch.float64
SIZES = [(8, 8), (11, 9), (50, 17), (9, 30)]
SOME_RULES = ["learned 1", "learned 3", "learned 5", "learned 3:2", "learned 4:7", "quaternion", "from quaternion:8"]
OPTIONS = [
    {}, {"padding_idx": 3}, {"padding_idx": -1}, {"padding_idx": 0, "scale_grad_by_freq": True},
    {"scale_grad_by_freq": True}, {"max_norm": 2.0}, {"max_norm": 1.5, "norm_type": 1.0, "padding_idx": 2},
]  # fmt: skip


def of_components(layer, weight_gradient):
    """What a gradient of the dense weight is for rule and components."""
    own = list(layer.parameters())
    return torch.autograd.grad(layer.weight, own, weight_gradient)


def ids_of(layer, *shape):
    return torch.randint(layer.num_embeddings, shape)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", SIZES)
def test_equals_torchs_layer_in_values_and_gradients(size, name):
    layer = Embedding(*size, rule=RULES[name](dtype=DOUBLE), dtype=DOUBLE)
    twin = layer.to_torch()
    for shape in [(3,), (4, 20), (0,), ()]:  # few ids and more than there are rows
        ids = ids_of(layer, *shape)
        found, expected = layer(ids), twin(ids)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected)
        (dense,) = torch.autograd.grad(expected, twin.weight, upstream)
        gradients = torch.autograd.grad(found, list(layer.parameters()), upstream)
        for one, other in zip(gradients, of_components(layer, dense), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rule", SOME_RULES)
@pytest.mark.parametrize("options", [options for options in OPTIONS if "max_norm" not in options], ids=str)
def test_options_are_torchs_in_values_and_gradients(options, rule):
    layer = Embedding(30, 9, **options, rule=RULES[rule](dtype=DOUBLE), dtype=DOUBLE)
    twin = layer.to_torch()
    for ids in (torch.tensor([3, 29, 3, 3, 0, 0, 7]), ids_of(layer, 5, 9)):
        found, expected = layer(ids), twin(ids)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(expected)
        (dense,) = torch.autograd.grad(expected, twin.weight, upstream)
        gradients = torch.autograd.grad(found, list(layer.parameters()), upstream)
        for one, other in zip(gradients, of_components(layer, dense), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [options for options in OPTIONS if "max_norm" in options], ids=str)
def test_max_norm_scales_what_is_looked_up_as_torch_does(options):
    layer = Embedding(30, 9, **options, rule=RULES["learned 4:7"](dtype=DOUBLE), dtype=DOUBLE)
    twin, ids = layer.to_torch(), ids_of(layer, 40)
    before = layer.weight.detach().clone()
    found = layer(ids)
    torch.testing.assert_close(found, twin(ids))
    norms = found.norm(layer.norm_type, -1)
    assert (norms <= layer.max_norm * (1 + 1e-6)).all()
    assert (before[ids].norm(layer.norm_type, -1) > layer.max_norm).any()
    assert torch.equal(layer.weight, before)
    upstream = torch.randn_like(found)
    factor = norms.detach() / before[ids].norm(layer.norm_type, -1).clamp(min=1e-9)
    dense = torch.zeros_like(before).index_add(0, ids, factor[:, None] * upstream)
    gradients = torch.autograd.grad(found, list(layer.parameters()), upstream)
    for one, other in zip(gradients, of_components(layer, dense), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("padding", [0, 10, -1, -11])
def test_the_padding_row_is_zero_and_passes_on_no_gradient(padding):
    layer = Embedding(11, 9, padding_idx=padding, rule=4)
    assert layer.padding_idx == padding % 11
    ids = torch.tensor([layer.padding_idx, 4])
    assert layer.weight[padding].abs().max() == 0
    assert layer(ids)[0].abs().max() == 0
    assert layer(ids)[1].abs().min() > 0
    layer(ids[:1]).sum().backward()
    assert layer.components.grad.abs().max() == 0


def test_ids_may_be_of_32_bits():
    layer, ids = Embedding(30, 9, padding_idx=2, scale_grad_by_freq=True, rule=4), torch.tensor([[1, 2], [29, 1]])
    assert torch.equal(layer(ids.int()), layer(ids))
    bags = EmbeddingBag(30, 9, padding_idx=2, scale_grad_by_freq=True, rule=4)
    assert torch.equal(bags(ids.int()), bags(ids))


def test_few_ids_need_no_weight():
    """Made are the rows asked for; and backward a gradient of the components' size."""
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.data_ptr() != layer.components.data_ptr():
                sizes.append(made.numel())
            return made

    layer = Embedding(3000, 64, rule=4)
    with Sizes():
        y = layer(torch.tensor([[1, 2999, 3]]))
    assert max(sizes) == y.numel() == 3 * 64
    with Sizes():
        y.sum().backward()
    assert max(sizes) == layer.components.numel() == 3000 * 64 // 4


def test_an_output_head_can_be_tied():
    model = Embedding(11, 9, rule=LearnedRule(4, dtype=DOUBLE), dtype=DOUBLE)
    twin, ids = model.to_torch(), torch.tensor([1, 5, 10, 5])
    upstream = torch.randn(4, 11, dtype=DOUBLE)
    found, expected = F.linear(model(ids).tanh(), model.weight), F.linear(twin(ids).tanh(), twin.weight)
    torch.testing.assert_close(found, expected)
    (dense,) = torch.autograd.grad(expected, twin.weight, upstream)
    gradients = torch.autograd.grad(found, list(model.parameters()), upstream)
    for one, other in zip(gradients, of_components(model, dense), strict=True):
        torch.testing.assert_close(one, other)


BAG_OPTIONS = [
    {"mode": "sum"}, {"mode": "mean"}, {"mode": "max"}, {"mode": "mean", "padding_idx": 2},
    {"mode": "sum", "padding_idx": -1}, {"mode": "max", "padding_idx": 0},
    {"mode": "mean", "include_last_offset": True},
]  # fmt: skip


def bags(options):
    """Arguments of a call: two dimensions, one with offsets, empty bags, bags of padding, no ids at all."""
    flat, last = torch.tensor([2, 5, 0, 29, 2, 2, 5, 5, 1]), [9] if options.get("include_last_offset") else []
    yield torch.tensor([[2, 5, 2], [29, 0, 0], [2, 2, 2], [5, 5, 5]]), None
    yield torch.randint(30, (9, 8)), None  # more ids than rows
    yield flat, torch.tensor([0, 3, 3, 4, *last])
    yield flat, torch.tensor([0, *last])
    yield torch.zeros(0, dtype=torch.long), torch.tensor([0, 0])


@pytest.mark.parametrize("rule", SOME_RULES)
@pytest.mark.parametrize("options", BAG_OPTIONS, ids=str)
def test_bags_are_torchs_in_values_and_gradients(options, rule):
    layer = EmbeddingBag(30, 9, **options, rule=RULES[rule](dtype=DOUBLE), dtype=DOUBLE)
    twin = layer.to_torch()
    for ids, offsets in bags(options):
        for weighted in (False, True) if options == {"mode": "sum"} else (False,):
            weights = torch.rand(ids.shape, dtype=DOUBLE, requires_grad=True) if weighted else None
            found, expected = layer(ids, offsets, weights), twin(ids, offsets, weights)
            torch.testing.assert_close(found, expected)
            upstream = torch.randn_like(expected)
            more = [weights] if weighted else []
            dense, *for_weights = torch.autograd.grad(expected, [twin.weight, *more], upstream)
            gradients = torch.autograd.grad(found, [*layer.parameters(), *more], upstream)
            for one, other in zip(gradients, [*of_components(layer, dense), *for_weights], strict=True):
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_divide_gradients_by_how_often_a_row_is_among_the_ids(mode):
    """Against torch's Embedding: its EmbeddingBag divides by the counts of other rows, on a CPU (torch 2.13)."""
    layer = EmbeddingBag(30, 9, mode=mode, scale_grad_by_freq=True, rule=LearnedRule(4, dtype=DOUBLE), dtype=DOUBLE)
    single = nn.Embedding(30, 9, scale_grad_by_freq=True, _weight=layer.weight.detach())
    ids = torch.tensor([[2, 5, 2], [29, 0, 0], [2, 2, 2], [5, 5, 5]])
    expected = getattr(single(ids), mode)(1)
    found, upstream = layer(ids), torch.randn_like(expected)
    torch.testing.assert_close(found, expected)
    (dense,) = torch.autograd.grad(expected, single.weight, upstream)
    gradients = torch.autograd.grad(found, list(layer.parameters()), upstream)
    for one, other in zip(gradients, of_components(layer, dense), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_max_norm_of_bags_is_torchs(mode):
    layer = EmbeddingBag(30, 9, max_norm=2.0, mode=mode, rule=RULES["learned 3"](dtype=DOUBLE), dtype=DOUBLE)
    ids = torch.randint(30, (3, 4))
    torch.testing.assert_close(layer(ids), layer.to_torch()(ids))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [0]), "if input is 2D, then offsets has to be None"),
        (([1, 2], None), "offsets has to be a 1D Tensor but got None"),
        (([[[1, 2]]], None), "input has to be 1D or 2D Tensor"),
    ],
)
def test_bags_of_wrong_form_are_refused_as_torch_does(arguments, message):
    ids, offsets = (None if values is None else torch.tensor(values) for values in arguments)
    with pytest.raises(ValueError, match=message):
        EmbeddingBag(30, 9, rule=4)(ids, offsets)


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
@pytest.mark.parametrize("wrong", [-1, 30, 31, 32, 1000, -30])
def test_ids_out_of_range_are_named(wrong, kind):
    """The components have 32 rows, the last two of which are none of the weight."""
    layer = kind(30, 9, rule=4)
    for ids in (torch.tensor([[3, wrong]]), torch.tensor([[3, wrong] * 40])):
        with pytest.raises(IndexError, match=rf"ids must be 0 or more and below num_embeddings = 30, got {wrong}"):
            layer(ids)


@pytest.mark.parametrize("wrong", [-1, 30, 31, 32, 1000])
def test_ids_out_of_range_are_not_found_where_they_are_not_looked_at(wrong):
    """As in a compiled graph or on an accelerator: torch's own lookup refuses them."""
    layer = Embedding(30, 9, rule=4)
    with pytest.raises(IndexError, match="out of range"):
        torch.vmap(layer)(torch.tensor([[3, wrong]]))


def test_ids_that_are_no_whole_numbers_are_refused(unchecked):
    with pytest.raises(RuntimeError, match="Long, Int"):
        Embedding(30, 9, rule=4)(torch.tensor([1.0]))


@pytest.mark.parametrize("name", ["learned 3", "learned 5", "learned 4:7", "quaternion", "octonion"])
@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_starts_with_the_variance_of_torchs_layer(kind, name):
    weight = kind(300, 65, rule=RULES[name]()).weight
    assert 0.95 < weight.std().item() < 1.05
    assert abs(weight.mean().item()) < 0.05


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_parameters_names_repr_and_copies(kind):
    layer = kind(32, 24, padding_idx=1, max_norm=2.0, rule=LearnedRule(4))
    twin = getattr(nn, kind.__name__)(32, 24, padding_idx=1, max_norm=2.0)
    assert sum(p.numel() for p in layer.parameters()) == 32 * 24 // 4 + 4**3
    assert set(layer.state_dict()) == {"rule.table", "components"}
    assert layer.extra_repr() == f"{twin.extra_repr()}, n=4"
    fresh = kind(32, 24, padding_idx=1, max_norm=2.0, rule=LearnedRule(4))
    fresh.load_state_dict(load(save(layer.state_dict())))
    ids = torch.randint(32, (3, 4))
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(ids), layer(ids))
    with pytest.raises((AttributeError, KeyError), match="weight"):
        layer.weight = nn.Parameter(layer.weight)


def test_smaller_types_and_autocast():
    layer, ids = Embedding(32, 24, rule=LearnedRule(4, 7)), torch.tensor([[1, 2, 30]])
    bag = EmbeddingBag(32, 24, rule=LearnedRule(4, 7))
    for module, expected in ((layer, layer(ids)), (bag, bag(ids))):
        with torch.autocast("cpu", torch.bfloat16):
            found = module(ids)
            assert found.dtype == module.weight.dtype == module.to_torch()(ids).dtype == torch.float32
            assert torch.equal(found, expected)
        found = module.bfloat16()(ids)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_meta_device_then_first_values_and_seed():
    with torch.device("meta"):
        layer = Embedding(30, 9, padding_idx=1, rule=4)
    assert layer(torch.zeros(3, dtype=torch.long, device="meta")).shape == (3, 9)
    layer.to_empty(device="cpu")
    for module in layer.modules():
        module.reset_parameters()
    assert 0.7 < layer(torch.arange(2, 30)).std().item() < 1.3
    torch.manual_seed(5)
    first = Embedding(30, 9, rule=4).weight
    torch.manual_seed(5)
    assert torch.equal(Embedding(30, 9, rule=4).weight, first)


def test_vmap_over_samples():
    layer, ids = Embedding(30, 9, padding_idx=1, rule=4), torch.randint(30, (3, 5))
    torch.testing.assert_close(torch.vmap(layer)(ids), layer(ids))


def test_second_derivatives():
    rule = LearnedRule(2, dtype=DOUBLE).table.detach().requires_grad_()
    components = torch.randn(2, 4, 2, dtype=DOUBLE, requires_grad=True)
    for ids in (torch.tensor([0, 6, 1]), torch.tensor([0, 6, 1, 1, 2, 3, 4, 5])):
        torch.autograd.gradgradcheck(lambda *t, ids=ids: look_up(ids, *t, (7, 3)), (rule, components))


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_like_copies_every_option(kind):
    options = {"padding_idx": 4, "max_norm": 3.0, "norm_type": 1.0, "scale_grad_by_freq": True, "dtype": DOUBLE}
    options |= {"mode": "sum", "include_last_offset": True} if kind is EmbeddingBag else {}
    torchs = getattr(nn, kind.__name__)(30, 9, **options).eval()
    layer = kind.like(torchs, rule=quaternion)
    assert (layer.training, layer.components.dtype) == (False, DOUBLE)
    twin = layer.to_torch()
    assert repr(twin) == repr(torchs)
    assert getattr(twin, "include_last_offset", None) == getattr(torchs, "include_last_offset", None)
    assert layer.to_torch().weight.dtype == DOUBLE


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": 0}, "rule must be a positive integer, an Algebra or a Rule, got 0"),
        ({"rule": 10}, "n = 10 is larger than embedding_dim = 9"),
        ({"num_embeddings": 3}, "n = 4 is larger than num_embeddings = 3"),
        ({"embedding_dim": 0}, "embedding_dim must be a positive integer, got 0"),
        (
            {"sparse": True},
            "sparse=True needs rows with numbers of their own, here rows share components; take sparse=F",
        ),
        ({"padding_idx": 30}, "padding_idx must be from -30 to 29, got 30"),
        ({"padding_idx": -31}, "padding_idx must be from -30 to 29, got -31"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, kind):
    with pytest.raises(ValueError, match=message):
        kind(**({"num_embeddings": 30, "embedding_dim": 9, "rule": 4} | arguments))


def test_wrong_modes_are_named():
    with pytest.raises(ValueError, match="mode must be one of sum, mean, max; got 'min'"):
        EmbeddingBag(30, 9, mode="min", rule=4)
    with pytest.raises(ValueError, match="scale_grad_by_freq does not go with mode 'max'"):
        EmbeddingBag(30, 9, mode="max", scale_grad_by_freq=True, rule=4)
    with pytest.raises(ValueError, match="sparse=True needs rows"):
        Embedding.like(nn.Embedding(30, 9, sparse=True), rule=4)


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_from_pretrained_is_nearest_to_the_table(kind):
    options = {"padding_idx": 3, "max_norm": 2.0}
    table = kind(32, 12, rule=4, padding_idx=3, dtype=DOUBLE).weight.detach().clone()
    layer = kind.from_pretrained(table, rule=LearnedRule(4, dtype=DOUBLE), **options)
    dense = getattr(torch.nn, kind.__name__).from_pretrained(table, **options)
    assert (layer.weight - table).norm() < 0.02 * table.norm()
    assert (layer.padding_idx, layer.max_norm, layer.weight.dtype) == (3, 2.0, DOUBLE)
    assert not any(p.requires_grad for p in layer.parameters())
    ids = torch.tensor([[1, 5, 3], [31, 0, 2]])
    torch.testing.assert_close(layer(ids), dense(ids), rtol=0.1, atol=0.2)
    exact = kind(32, 12, rule=4, dtype=DOUBLE).weight.detach().clone()
    torch.testing.assert_close(kind.from_pretrained(exact, rule=LearnedRule(4, dtype=DOUBLE)).weight, exact)
    with pytest.warns(UserWarning, match=f"misses .* %.* or torch.nn.{kind.__name__}"):
        far = kind.from_pretrained(torch.randn(32, 12), freeze=False, rule=4)
    assert all(p.requires_grad for p in far.parameters())
    base = torch.nn.Module()
    rule = share(base, LearnedRule(4, dtype=DOUBLE))
    before = rule.table.detach().clone()
    with pytest.warns(UserWarning, match="misses"):
        kind.from_pretrained(exact, rule=rule)
    assert torch.equal(rule.table, before)
    assert rule.table.requires_grad


@pytest.mark.parametrize("kind", [Embedding, EmbeddingBag])
def test_from_pretrained_refuses_what_it_cannot_hold(kind):
    table = torch.ones(8, 8)
    with pytest.raises(ValueError, match="padding_idx = 2 must be zero"):
        kind.from_pretrained(table, padding_idx=2, rule=2)
    with pytest.raises(ValueError, match="sparse=True needs"):
        kind.from_pretrained(table, sparse=True, rule=2)
    with pytest.raises(ValueError, match="not finite"):
        kind.from_pretrained(table / 0, rule=2)
