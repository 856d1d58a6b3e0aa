"""Given weights as rule and components."""

import pytest
import torch
from cases import RULES
from torch import nn

import nplex
from nplex import algebra
from nplex import nn as nx
from nplex.nn import FixedRule, LearnedRule
from nplex.nn.nearest import nearest_

LAYERS = {
    "Linear": lambda: nn.Linear(12, 20),
    "Linear, odd": lambda: nn.Linear(13, 18),
    "Conv2d": lambda: nn.Conv2d(8, 16, 3, groups=2),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(8, 12, 3),
    "LSTM": lambda: nn.LSTM(8, 12, 2, bidirectional=True),
    "GRUCell": lambda: nn.GRUCell(8, 12),
    "MultiheadAttention": lambda: nn.MultiheadAttention(12, 2, batch_first=True),
    "Embedding": lambda: nn.Embedding(16, 8),
    "Embedding, padding": lambda: nn.Embedding.from_pretrained(torch.randn(16, 8), freeze=False, padding_idx=3),
    "Bilinear": lambda: nn.Bilinear(8, 3, 12),
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("rule", ["learned 2", "learned 4", "quaternion", "learned 2:2"])
@pytest.mark.parametrize("name", [name for name in LAYERS if "," not in name])
def test_a_weight_that_is_such_a_sum_comes_back(name, rule):
    make = RULES.get(rule, lambda **kw: LearnedRule(4, **kw))
    torch.manual_seed(2)
    kind, old = getattr(nx, name), LAYERS[name]()
    dense = kind.like(old, rule=make()).to_torch()
    layer = kind.like(old, rule=make())
    [error] = nearest_([(layer, dense)])
    assert error < (1e-3 if rule == "learned 2:2" else 1e-9)
    if rule != "learned 2:2":
        found = dict(layer.to_torch().named_parameters())
        torch.testing.assert_close(found, dict(dense.named_parameters()))


@pytest.mark.parametrize("name", LAYERS)
def test_the_error_is_that_of_the_weights_and_the_least(name):
    torch.manual_seed(0)
    old = LAYERS[name]()
    kind = getattr(nx, name.partition(",")[0])
    layer = kind.like(old, rule=LearnedRule(2))
    [error] = nearest_([(layer, old)])
    ours, theirs = dict(layer.to_torch().named_parameters()), dict(old.named_parameters())
    weights = [key for key in theirs if "weight" in key]
    if name != "MultiheadAttention":
        wrong = sum((ours[key] - theirs[key]).square().sum() for key in weights)
        whole = sum(theirs[key].square().sum() for key in weights)
        assert error == pytest.approx((wrong / whole).sqrt().item())
    for other in theirs.keys() - set(weights):
        assert torch.equal(ours[other], theirs[other])

    torch.manual_seed(1)
    for parameter in [p for key, p in layer.named_parameters() if "components" in key]:
        with torch.no_grad():
            kept = parameter.clone()
            parameter += 1e-3 * torch.randn_like(parameter)
            worse = dict(layer.to_torch().named_parameters())
            parameter.copy_(kept)
        assert sum((worse[key] - theirs[key]).square().sum() for key in weights) >= sum(
            (ours[key] - theirs[key]).square().sum() for key in weights
        )


def test_one_rule_for_several_layers_is_chosen_for_all():
    torch.manual_seed(0)
    base = nn.Module()
    rule = nx.share(base, LearnedRule(2))
    source = [nx.Linear(8, 8, rule=rule), nx.Linear(8, 12, rule=rule)]
    dense = [layer.to_torch() for layer in source]
    other = nn.Module()
    fresh = nx.share(other, LearnedRule(2))
    layers = [nx.Linear.like(layer, rule=fresh) for layer in dense]
    assert max(nearest_(list(zip(layers, dense, strict=True)))) < 1e-9
    kept = nx.share(nn.Module(), LearnedRule(2))
    table = kept.table.clone()
    layers = [nx.Linear.like(layer, rule=kept) for layer in dense]
    assert max(nearest_(list(zip(layers, dense, strict=True)), [kept])) > 0.1
    assert torch.equal(kept.table, table)


@pytest.mark.parametrize("shared", [False, True])
def test_convert_takes_the_nearest_and_tells_the_error(shared):
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 24))

        def forward(self, x):
            return self.body(x)

    model = Net()
    nplex.convert_(model, 4, shared=shared)
    nplex.fold_(model)
    x = torch.randn(5, 24)
    expected = model(x)
    report = nplex.convert_(model, 4, shared=shared, weights="nearest")
    torch.testing.assert_close(model(x), expected)
    assert max(row.error for row in report.rows) < 1e-9
    assert "error 0.000" in str(report)
    with pytest.raises(ValueError, match="weights must be fresh or nearest, got 'old'"):
        nplex.convert_(Net(), 4, weights="old")


def test_a_fixed_rule_stays():
    layer = nx.Linear(8, 8, rule=FixedRule(algebra.quaternion))
    [error] = nearest_([(layer, nn.Linear(8, 8))])
    assert 0.5 < error < 1
    assert layer.rule.algebra == algebra.quaternion
