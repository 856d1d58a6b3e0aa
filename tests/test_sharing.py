"""What copies, moves, saves or replicates a model whose layers share a rule: the tie holds, or one is told."""

import copy
import gc
import pickle
import sys
import warnings
import weakref

import pytest
import torch
from layer_cases import LAYERS
from test_rule import Pair, tied
from torch import nn

from nplex import algebra
from nplex import nn as nx
from nplex.nn import FixedRule, LearnedRule, Linear, missing_rules, share

replicate_module = sys.modules["torch.nn.parallel.replicate"]
ALWAYS = [name for name in LAYERS if not name.startswith("Transformer")]


class HeadFirst(nn.Module):
    """A layer, and then the part that holds the rule."""

    def __init__(self, make=lambda rule: Linear(8, 8, rule=rule), rule=None):
        super().__init__()
        body = nn.Module()
        rule = share(body, LearnedRule(2) if rule is None else rule)
        self.head = make(rule)
        body.layer = make(rule)
        self.body = body

    def forward(self, *inputs):
        return self.head(*inputs), self.body.layer(*inputs)


class BaseFirst(nn.Module):
    def __init__(self):
        super().__init__()
        rule = share(self, LearnedRule(2))
        self.head = Linear(8, 8, rule=rule)
        self.body = nn.Module()
        self.body.layer = Linear(8, 8, rule=rule)


def through_pickle(model):
    return pickle.loads(pickle.dumps(model))


def rule_of(model):
    return model.rule if isinstance(model, BaseFirst) else model.body.rule


WAYS = {
    "copied": copy.deepcopy,
    "copied twice": lambda m: copy.deepcopy(copy.deepcopy(m)),
    "copied after pickle": lambda m: copy.deepcopy(through_pickle(m)),
    "pickled after a copy": lambda m: through_pickle(copy.deepcopy(m)),
    "in a list": lambda m: copy.deepcopy([m.head, m])[1],
    "averaged": lambda m: torch.optim.swa_utils.AveragedModel(m).module,
    "doubled": lambda m: copy.deepcopy(m).double(),
    "through meta": lambda m: copy.deepcopy(m).to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [HeadFirst, BaseFirst])
def test_a_whole_copy_holds_all_that_it_uses(kind, way):
    model = kind()
    other = WAYS[way](model)
    assert rule_of(other) is not rule_of(model)
    assert other.head.rule is other.body.layer.rule is rule_of(other)
    assert missing_rules(other) == missing_rules(model) == []
    assert rule_of(other).is_shared
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("prepare", [lambda m: m, copy.deepcopy, through_pickle])
@pytest.mark.parametrize("kind", [HeadFirst, BaseFirst])
def test_a_copied_part_goes_on_sharing(kind, prepare):
    model = prepare(kind())
    assert copy.deepcopy(model.head).rule is rule_of(model)
    assert copy.deepcopy(nn.ModuleList([model.head]))[0].rule is rule_of(model)


def test_torchs_stack_of_copies_goes_on_sharing():
    base = nn.Module()
    rule = share(base, LearnedRule(4))
    layer = nx.TransformerEncoderLayer(16, 2, 32, batch_first=True, rule=rule)
    base.stack = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    assert missing_rules(base) == []
    whole = copy.deepcopy(base)
    assert missing_rules(whole) == []
    assert whole.stack.layers[2].linear1.rule is whole.rule


def test_loading_by_assignment_keeps_the_tie():
    model = HeadFirst()
    other = HeadFirst().to("meta")
    other.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(3, 8)
    assert all(map(torch.equal, model(x), other(x)))
    assert other.head.rule is other.body.rule


def test_functional_call_reaches_all_layers():
    model, x = Pair(), torch.randn(3, 8)
    numbers = {name: 2 * p.detach() if "rule" in name else p for name, p in model.named_parameters()}
    for layer in (model.up, model.down):
        layer.bias.data.zero_()
    torch.testing.assert_close(torch.func.functional_call(model, numbers, (x,)), 4 * model(x))


def test_a_parametrized_rule_is_copied_with_its_layers():
    model = HeadFirst()
    nn.utils.parametrize.register_parametrization(model.body.rule, "table", nn.Tanh())
    other = copy.deepcopy(model)
    assert other.head.rule is other.body.rule
    assert other.body.rule is not model.body.rule


def test_copies_and_replicas_hold_no_model_alive(scaled_replicas):
    model = HeadFirst()
    died = [weakref.ref(m) for m in (model, model.body.rule, *replicate_module.replicate(model, [0, 1]))]
    copy.deepcopy(model)
    del model
    gc.collect()
    assert [ref() for ref in died] == [None] * 4


@pytest.fixture
def scaled_replicas(monkeypatch):
    """Torch's own replicate, whose j-th replica has all numbers times j + 1."""
    copies = lambda tensors, devices, detach=False: [[(j + 1) * t for t in tensors] for j in devices]  # noqa: E731
    monkeypatch.setattr(replicate_module, "_broadcast_coalesced_reshape", copies)


def outputs(y):
    return [y] if isinstance(y, torch.Tensor) else [t for part in y if part is not None for t in outputs(part)]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_replicas_use_their_own_rule(name, shared, scaled_replicas):
    """Each replica computes what a copy with its numbers computes; again, and with gradients for the model."""
    case = LAYERS[name]
    if shared:
        model = HeadFirst(lambda rule: case.make(4, rule=rule).eval())
    else:
        model = nn.Sequential(case.make(4, rule=2).eval())
        model.forward = None
    inputs = case.inputs(4, torch.float32)
    part = model.head if shared else model[0]
    for _ in range(2):
        for j, replica in enumerate(replicate_module.replicate(model, [0, 1, 2])):
            other = copy.deepcopy(model)
            with torch.no_grad():
                for p in other.parameters():
                    p.mul_(j + 1)
            came = outputs((replica.head if shared else replica[0])(*inputs))
            expected = outputs((other.head if shared else other[0])(*inputs))
            for y, z in zip(came, expected, strict=True):
                torch.testing.assert_close(y, z, atol=1e-4, rtol=1e-4)
            sum(y.float().sum() for y in came).backward()
    rule = next(m for m in model.modules() if isinstance(m, nx.Rule))
    assert rule.table.grad is not None
    assert rule.table.grad.abs().sum() > 0
    assert part is not None


@pytest.mark.parametrize("rule", [lambda: LearnedRule(4, rank=7), lambda: FixedRule(algebra.quaternion)])
def test_replicas_of_other_kinds_of_rules(rule, scaled_replicas):
    model, x = HeadFirst(rule=rule()), torch.randn(3, 8)
    second = replicate_module.replicate(model, [0, 1])[1]
    scale = 2 ** (1 + 3)  # components and three factors
    bias = model.head.bias
    torch.testing.assert_close(second(x)[0] - 2 * bias, scale * (model(x)[0] - bias), atol=1e-4, rtol=1e-4)


def test_replicas_of_a_part_use_the_rule_itself(scaled_replicas):
    model, x = HeadFirst(), torch.randn(3, 8)
    for _ in range(2):
        for j, replica in enumerate(replicate_module.replicate(model.head, [0, 1])):
            torch.testing.assert_close(replica(x), (j + 1) * model.head(x))
    replica(x).sum().backward()
    assert model.body.rule.table.grad.abs().sum() > 0


def without_warning(make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return make()


def test_a_whole_state_does_not_warn():
    for model in (HeadFirst(), BaseFirst(), nn.Sequential(Pair()), nn.DataParallel(Pair())):
        without_warning(model.state_dict)


@pytest.mark.parametrize("ask", [lambda part: part.state_dict(), lambda part: nn.Sequential(part).state_dict()])
def test_a_nested_part_without_its_rule_warns_once_and_names_the_layers(ask):
    part = nn.ModuleDict({"deep": nn.Sequential(Pair().up, Pair().down), "other": nn.Linear(2, 2)})
    with pytest.warns(UserWarning, match="shared rule is not among these weights.*deep.0, .*deep.1 use one") as told:
        ask(part)
    assert len(told) == 1
    with pytest.warns(UserWarning, match="not among these weights"):  # and each time
        part.state_dict()


def test_another_rule_put_at_the_base_is_told():
    model = Pair()
    model.rule = LearnedRule(4)
    assert missing_rules(model) == ["up", "down"]
    with pytest.warns(UserWarning, match=r"up, down use one that is not registered in this Pair"):
        model.state_dict()


def test_a_part_that_was_pickled_alone_is_told():
    part = through_pickle(nn.Sequential(Pair().up))
    assert missing_rules(part) == ["0"]
    with pytest.warns(UserWarning, match="0 use one"):
        part.state_dict()


def test_an_own_state_dict_between_is_seen():
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def state_dict(self, *args, **kwargs):
            return self.inner.state_dict(*args, **kwargs)

    without_warning(Wrapper(Pair()).state_dict)
    with pytest.warns(UserWarning, match="not among these weights"):
        Wrapper(Pair().up).state_dict()


def test_tied_after_all():
    assert tied(copy.deepcopy(through_pickle(Pair())))
