"""nn.init.like_: any initialiser of a dense weight, so that W has its size."""

import math

import pytest
import torch
from layer_cases import LAYERS
from torch import nn

from nplex import algebra
from nplex import nn as nx
from nplex.nn.init import like_

RULES = [2, 4, nx.LearnedRule(4, rank=7), algebra.quaternion, algebra.direct(4)]


def weights(layer):
    """Every dense weight, by torch's name."""
    dense = layer.to_torch()
    return {name: p.detach() for name, p in dense.named_parameters() if "weight" in name and "norm" not in name}


@pytest.mark.parametrize("name", LAYERS)
def test_zeros_are_zeros_in_every_layer(name):
    layer = LAYERS[name].make(8, rule=4)
    assert like_(layer, nn.init.zeros_) is layer
    assert not any(w.any() for w in weights(layer).values())


@pytest.mark.parametrize("name", LAYERS)
def test_random_values_have_the_size_that_was_asked_for(name):
    torch.manual_seed(0)
    layer = LAYERS[name].make(48, rule=4)
    rules = {key: value.clone() for key, value in layer.state_dict().items() if "rule" in key}
    like_(layer, lambda w: nn.init.trunc_normal_(w, std=0.02))
    for w in weights(layer).values():
        inner = w[w != 0]  # without padded rows
        assert float(inner.square().mean().sqrt()) == pytest.approx(0.02, rel=0.15)
    assert all(torch.equal(layer.state_dict()[key], value) for key, value in rules.items())


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("fn", [nn.init.xavier_uniform_, nn.init.kaiming_normal_, nn.init.orthogonal_])
def test_initialisers_of_torch(fn, rule):
    torch.manual_seed(0)
    rule = nx.sharing.new_like(rule) if isinstance(rule, nx.Rule) else rule
    layer, dense = nx.Linear(256, 511, rule=rule), torch.empty(511, 256)
    like_(layer, fn)
    fn(dense)
    assert float(layer.weight.detach().std()) == pytest.approx(float(dense.std()), rel=0.05)
    assert abs(float(layer.weight.detach().mean())) < 5 * float(dense.std()) / math.sqrt(511 * 256 / layer.rule.n)


def test_what_the_rule_can_give_is_given():
    layer = nx.Linear(64, 64, rule=algebra.quaternion)
    torch.testing.assert_close(like_(layer, nn.init.eye_).weight.detach().clone(), torch.eye(64))
    before = layer.components.detach().clone()
    with pytest.raises(
        ValueError, match="cannot give the weight that the initialiser gives; take a random one, or zeros"
    ):
        like_(layer, nn.init.ones_)
    assert torch.equal(layer.components, before)


def test_components_of_low_rank():
    torch.manual_seed(0)
    layer = nx.LowRankLinear(256, 512, rule=4, low_rank=8)
    like_(layer, lambda w: nn.init.normal_(w, std=0.1))
    assert float(layer.weight.detach().std()) == pytest.approx(0.1, rel=0.02)
    assert not like_(layer, nn.init.zeros_).weight.any()


def test_a_whole_model_and_what_is_not_ours():
    model = nn.Sequential(nn.Linear(8, 8), nx.Linear(8, 8, rule=2).requires_grad_(False))
    before = model[0].weight.detach().clone()
    like_(model, nn.init.zeros_)
    assert torch.equal(model[0].weight, before)
    assert not model[1].weight.any()
    assert not any(p.requires_grad for p in model[1].parameters())
    with pytest.raises(ValueError, match="Linear has no layer of nplex"):
        like_(model[0], nn.init.zeros_)
