"""Layers and weights that a model holds outside its tree of modules, and what is set on them."""

import functools
import itertools
import types
import weakref
from collections import OrderedDict, deque, namedtuple
from dataclasses import dataclass

import numpy
import pytest
import torch
from test_convert import KINDS, Base, all_layers
from torch import nn

import nplex
from nplex.convert.twins import TWINS
from nplex.nn import LearnedRule

Pair = namedtuple("Pair", "first second")


@dataclass
class Plain:
    layer: object


@dataclass(frozen=True, slots=True)
class Frozen:
    layer: object


class Net(nn.Module):
    """Runs its layer through whatever `hold` makes of it, by `run`."""

    def __init__(self, hold, run):
        super().__init__()
        self.lin, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        self.held, self.run = hold(self.lin), run

    def forward(self, x):
        return self.last(self.run(self.held, x))


HELD = {
    "list": (lambda layer: [layer], lambda held, x: held[0](x)),
    "tuple": (lambda layer: (1, layer), lambda held, x: held[1](x)),
    "named tuple": (lambda layer: Pair(1, layer), lambda held, x: held.second(x)),
    "dict": (lambda layer: {"a": layer}, lambda held, x: held["a"](x)),
    "ordered dict": (lambda layer: OrderedDict(a=layer), lambda held, x: held["a"](x)),
    "set": (lambda layer: {layer}, lambda held, x: next(iter(held))(x)),
    "deque": (lambda layer: deque([layer]), lambda held, x: held[0](x)),
    "nested": (lambda layer: {"a": [(layer, {"b": (layer,)})]}, lambda held, x: held["a"][0][1]["b"][0](x)),
    "object": (lambda layer: types.SimpleNamespace(a=layer), lambda held, x: held.a(x)),
    "dataclass": (Plain, lambda held, x: held.layer(x)),
    "frozen dataclass with slots": (Frozen, lambda held, x: held.layer(x)),
    "bound method": (lambda layer: layer.forward, lambda held, x: held(x)),
    "bound call": (lambda layer: [layer.__call__], lambda held, x: held[0](x)),
    "partial": (lambda layer: functools.partial(layer), lambda held, x: held(x)),
    "partial of a method": (lambda layer: functools.partial(layer.forward), lambda held, x: held(x)),
    "partial's argument": (lambda layer: functools.partial(lambda f, x: f(x), layer), lambda held, x: held(x)),
    "weak reference": (weakref.ref, lambda held, x: held()(x)),
    "weak proxy": (weakref.proxy, lambda held, x: held(x)),
    "weak method": (lambda layer: weakref.WeakMethod(layer.forward), lambda held, x: held()(x)),
    "weak values": (lambda layer: weakref.WeakValueDictionary(a=layer), lambda held, x: held["a"](x)),
    "read-only dict": (lambda layer: types.MappingProxyType({"a": layer}), lambda held, x: held["a"](x)),
    "view of a dict": (lambda layer: {"a": layer}.values(), lambda held, x: next(iter(held))(x)),
    "iterator of a list": (lambda layer: [iter([layer]), Plain([layer])], lambda held, x: held[1].layer[0](x)),
    "array of objects": (
        lambda layer: numpy.array([None, layer], dtype=object).reshape(2, 1),
        lambda held, x: held[1, 0](x),
    ),
    "dead proxy": (
        lambda layer: [layer, weakref.proxy(nn.Linear(2, 2)), weakref.ref(nn.Linear(2, 2))],
        lambda held, x: held[0](x),
    ),
    "a module in a list": (lambda layer: [nn.Sequential(layer)], lambda held, x: held[0](x)),
    "method of an object": (lambda layer: Plain(layer).__repr__, lambda held, x: held.__self__.layer(x)),
}
HIDDEN = {
    "closure": (lambda layer: lambda x: layer(x), lambda held, x: held(x)),
    "default": (lambda layer: lambda x, layer=layer: layer(x), lambda held, x: held(x)),
    "frozen set": (lambda layer: frozenset([layer]), lambda held, x: next(iter(held))(x)),
    "key": (lambda layer: {layer: 1}, lambda held, x: next(iter(held))(x)),
    "tuple in a closure": (lambda layer: (lambda pair: lambda x: pair[0](x))((layer,)), lambda held, x: held(x)),
    "cycle": (lambda layer: itertools.cycle((layer,)), lambda held, x: next(held)(x)),
    "generator": (lambda layer: (each for each in itertools.repeat(layer)), lambda held, x: next(held)(x)),
    "its own method bound anew": (
        lambda layer: types.MethodType(lambda self, x: self(x), layer),
        lambda held, x: held(x),
    ),
}


def trains_all(model):
    model.zero_grad()
    model(torch.randn(3, 16)).sum().backward()
    return all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("kind", HELD)
def test_layers_are_exchanged_wherever_they_are_held(kind, tmp_path):
    model, again = Net(*HELD[kind]), Net(*HELD[kind])
    report = nplex.convert_(model, 4)
    assert all(row.changes for row in report.rows)
    assert trains_all(model)
    assert nplex.check(model, torch.randn(3, 16))
    x = torch.randn(3, 16)
    nplex.save(model, tmp_path / "model.safetensors")
    nplex.load(tmp_path / "model.safetensors", again)
    torch.testing.assert_close(again(x), model(x))
    assert trains_all(again)
    expected = model(x)
    nplex.fold_(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert type(model.lin) is nn.Linear
    assert trains_all(model)


@pytest.mark.parametrize("kind", HIDDEN)
def test_layers_that_are_held_where_nothing_can_be_changed_are_skipped(kind):
    model = Net(*HIDDEN[kind])
    report = nplex.convert_(model, 4)
    assert "also held by held" in report.rows[0].reason
    assert "which cannot be changed" in report.rows[0].reason
    assert report.rows[1].changes
    assert trains_all(model)


@pytest.mark.parametrize(
    "hold",
    [
        lambda model: setattr(model, "w", [model.lin.weight]),
        lambda model: setattr(model, "w", model.lin.weight.data[:2]),
        lambda model: setattr(model.last, "bias", nn.Parameter(model.lin.weight.data[0])),
        lambda model: setattr(model.last.weight, "data", model.lin.weight.data),
        lambda model: model.register_buffer("view", model.lin.weight.detach().t()),
        lambda model: setattr(model, "w", {"a": types.SimpleNamespace(b=model.lin.weight)}),
        lambda model: setattr(model, "o", torch.optim.SGD(model.lin.parameters(), 0.1)),
    ],
)
def test_weights_that_something_else_uses_keep_their_layer(hold):
    model = Net(*HELD["list"])
    hold(model)
    assert "its weight is tied to" in nplex.preview(model, 4).rows[0].reason


def test_views_of_one_memory_that_do_not_overlap_are_not_tied():
    model = Net(*HELD["list"])
    memory = torch.randn(512)
    model.lin.weight.data, model.last.weight.data = memory[:256].view(16, 16), memory[256:].view(16, 16)
    assert all(row.changes for row in nplex.preview(model, 4).rows)


def test_rules_are_exchanged_wherever_they_are_held():
    model = Net(*HELD["list"])
    nplex.convert_(model, LearnedRule(2, rank=3))
    model.rules = {"all": [model.lin.rule, model.last.rule]}
    nplex.unfactorize_(model)
    assert model.rules["all"] == [model.lin.rule, model.last.rule]
    assert model.lin.rule.rank is None


def test_a_rule_that_something_else_holds_keeps_its_layer_from_being_folded():
    model = Net(*HELD["list"])
    nplex.convert_(model, 4)
    model.rules = [model.lin.rule]
    report = nplex.fold_(model)
    assert [row.changes for row in report.rows] == [False, True]
    assert "also held by rules[0]" in report.rows[0].reason


@pytest.mark.parametrize("label", KINDS)
def test_what_is_set_on_layers_and_weights_goes_along(label):
    model = Base(KINDS[label]())
    layer = model.parts["deep"][0][1]
    kept = set(vars(layer))
    layer.scale, layer.me, layer._is_hf_initialized = 2, [layer], True
    for name, parameter in layer.named_parameters():
        parameter.no_decay = name
    names = {name for name, _ in layer.named_parameters()}
    nplex.convert_(model, 2, where=all_layers)
    layer = model.parts["deep"][0][1]
    assert (layer.scale, layer._is_hf_initialized) == (2, True)
    assert layer.me == [layer]
    assert {vars(p).get("no_decay") for p in layer.parameters()} - {None} == names
    nplex.fold_(model)
    layer = model.parts["deep"][0][1]
    assert type(layer) in TWINS
    assert {p.no_decay for p in layer.parameters()} == names
    assert set(vars(layer)) - kept == {"scale", "me", "_is_hf_initialized"}
    assert layer.me == [layer]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer: setattr(layer, "mask", torch.ones(16, 16)), "its attribute mask is a tensor of the size"),
        (lambda layer: setattr(layer, "method", "x"), "its attribute method would mean something else"),
        (lambda layer: setattr(layer.weight, "loader", print), "its weight has an attribute loader"),
        (lambda layer: setattr(layer.weight, "mask", torch.ones(16)), "its weight has an attribute mask, a Tensor"),
    ],
)
def test_what_cannot_go_along_keeps_a_layer(change, reason):
    model = Net(*HELD["list"])
    change(model.lin)
    assert reason in nplex.convert_(model, 4).rows[0].reason


@pytest.mark.parametrize("label", KINDS)
def test_zero_weights_stay_zero(label):
    model = Base(KINDS[label]())
    layer = model.parts["deep"][0][1]
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    report = nplex.convert_(model, 2, where=all_layers)
    assert report.rows[0].note.startswith("zero as before: ")
    layer = model.parts["deep"][0][1]
    assert not any(p.any() for name, p in layer.named_parameters() if "rule" not in name)


def test_frozen_layers_with_fresh_numbers_are_told():
    def made():
        model = Net(*HELD["list"])
        model.lin.requires_grad_(False)
        return model

    told = "frozen: its new numbers are random and stay so"
    assert [row.note for row in nplex.convert_(made(), 4).rows] == [told, ""]
    assert 'take weights="nearest"' in str(nplex.preview(made(), 4))
    assert "frozen" not in str(nplex.convert_(made(), 4, weights="nearest"))


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_other_types_keep_a_layer(kind):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(kind), False)
    assert f"its weight is {kind}" in nplex.preview(model, 4).rows[0].reason
    assert "nothing is near to it" not in nplex.convert_(model, 4).rows[0].reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_have_nothing_near(value):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    with torch.no_grad():
        model[0].bias[0] = value
    report = nplex.convert_(model, 4, weights="nearest")
    assert report.rows[0].reason == "its bias is not finite, so that nothing is near to it"
    assert report.rows[1].changes


@pytest.mark.parametrize("select", [nplex.only, nplex.all_but])
@pytest.mark.parametrize("kind", [list, tuple, set, iter])
def test_patterns_come_in_lists_too(select, kind):
    names = ["lin", "other.*"]
    model = Net(*HELD["list"])
    one, many = select(*names), select(kind(names))
    assert [one(n, m) for n, m in model.named_modules()] == [many(n, m) for n, m in model.named_modules()]


@pytest.mark.parametrize("select", [nplex.only, nplex.all_but])
@pytest.mark.parametrize("given", [[["a", 1]], [1], [None, "a"]])
def test_patterns_are_texts(select, given, unchecked):
    with pytest.raises(TypeError, match="needs patterns of names"):
        select(*given)


GLOBAL = {}


class Global(nn.Module):
    """Runs a layer that only a global variable holds."""

    def __init__(self):
        super().__init__()
        self.lin, self.norm, self.unused = nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)
        GLOBAL["layer"] = self.lin

    def forward(self, x, *, again=None):
        y = self.norm(torch.dropout(GLOBAL["layer"](x), 0.5, True))
        return {"y": [y], "z": self.unused(x).argmax(-1)}


def test_check_sees_what_a_forward_uses_and_trains():
    model = Global()
    nplex.convert_(model, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = nplex.check(model, {"x": torch.randn(5, 16, generator=torch.Generator().manual_seed(1))})
    assert not found
    assert not found.ok
    lin, unused = found.rows
    assert (lin.used, unused.used) == (False, True)
    assert unused.without_gradient == ("components", "bias", "rule.table")
    assert "the layer from before the conversion" in str(found)
    assert found.outside == ((16, 16), (16,))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_check_names_rules_that_are_registered_nowhere():
    model = Net(*HELD["list"])
    nplex.convert_(model, 4, shared=True)
    assert nplex.check(model, (torch.randn(3, 16),))
    assert "registered nowhere" in str(nplex.check(nn.Sequential(model.lin), torch.randn(3, 16)))


def test_check_needs_a_layer(unchecked):
    with pytest.raises(ValueError, match="nothing to check"):
        nplex.check(nn.Linear(4, 4), torch.ones(4))
    with pytest.raises(TypeError, match="the model must be a torch"):
        nplex.check([], torch.ones(4))
