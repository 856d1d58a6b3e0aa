"""convert_(optimizer=): an optimizer that was made before goes on with the new parameters."""

import pytest
import torch
from torch import nn

import nplex
from nplex import algebra
from nplex.nn import LearnedRule


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.net = nn.Sequential(nn.Linear(8, 16), encoder, nn.Linear(16, 8))

    def forward(self, x):
        return self.net(x)

    def __getitem__(self, number):
        return self.net[number]


def model():
    torch.manual_seed(0)
    return Model()


def step(made, optimizer):
    torch.manual_seed(1)
    optimizer.zero_grad()
    made(torch.randn(4, 3, 8)).square().mean().backward()
    optimizer.step()


def groups_of(made):
    matrices = [p for p in made.parameters() if p.ndim > 1]
    return [
        {"params": matrices, "lr": 1e-2, "weight_decay": 0.1},
        {"params": [p for p in made.parameters() if p.ndim < 2], "lr": 2e-2, "weight_decay": 0.0},
    ]


def held(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rule", [4, LearnedRule(4, rank=7), algebra.quaternion], ids=["4", "4:7", "quaternion"])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_every_parameter_is_in_it_once_and_all_train(kind, rule, shared):
    made = model()
    optimizer = kind(groups_of(made))
    step(made, optimizer)
    report = nplex.convert_(made, rule, shared=shared, optimizer=optimizer)
    assert str(report).endswith("optimizer: 8 of 8 layers replaced, with fresh state")
    assert sorted(map(id, held(optimizer))) == sorted(map(id, made.parameters()))
    before = [p.detach().clone() for p in made.parameters()]
    step(made, optimizer)
    assert not any(torch.equal(p, old) for p, old in zip(made.parameters(), before, strict=True))
    optimizer.load_state_dict(optimizer.state_dict())


def test_parameters_stand_where_the_old_ones_stood_and_rules_have_no_decay():
    made = model()
    optimizer = torch.optim.AdamW(groups_of(made))
    nplex.convert_(made, 4, optimizer=optimizer)
    decayed, spared = (group["params"] for group in optimizer.param_groups)
    assert decayed[0] is made[0].components
    assert spared[0] is made[0].bias
    rules = [p for m in made.modules() if isinstance(m, LearnedRule) for p in m.parameters()]
    assert set(rules) <= set(spared)


def test_rules_have_the_rate_of_their_layer_where_nothing_decays():
    made = model()
    optimizer = torch.optim.SGD([{"params": part.parameters(), "lr": 10.0**-i} for i, part in enumerate(made.net)])
    nplex.convert_(made, 4, optimizer=optimizer)
    for group, part in zip(optimizer.param_groups, made.net, strict=True):
        assert set(group["params"]) == set(part.parameters())


def test_all_other_state_is_kept():
    made = model()
    optimizer = torch.optim.AdamW(made.parameters())
    step(made, optimizer)
    kept = made[1].layers[0].norm1.weight
    state = {key: value.clone() for key, value in optimizer.state[kept].items()}
    nplex.convert_(made, 4, where=nplex.only("net.0"), optimizer=optimizer)
    assert all(torch.equal(optimizer.state[kept][key], value) for key, value in state.items())
    assert set(optimizer.state) <= set(made.parameters())
    assert optimizer.param_groups[0]["params"][-1] is made[0].rule.table


@pytest.mark.parametrize("shared", [False, True])
def test_names_of_parameters_go_along_and_a_scheduler_goes_on(shared):
    made = model()
    optimizer = torch.optim.SGD(made.named_parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    nplex.convert_(made, 4, shared=shared, optimizer=optimizer)
    names = {id(p): name for name, p in made.named_parameters()}
    (group,) = optimizer.param_groups
    assert group["param_names"] == [names[id(p)] for p in group["params"]]
    step(made, optimizer)
    schedule.step()
    assert group["lr"] == 0.05


def test_what_the_optimizer_does_not_hold_stays_out_of_it():
    made = model()
    optimizer = torch.optim.SGD(made[0].parameters(), lr=0.1)
    report = nplex.convert_(made, 4, where=nplex.only("net.0", "net.2"), optimizer=optimizer)
    assert report.optimizer == "optimizer: 1 of 2 layers replaced, with fresh state; not in it and left out: net.2"
    assert set(held(optimizer)) == set(made[0].parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Adagrad])
def test_an_optimizer_that_cannot_be_changed_is_refused_before_anything_is(kind):
    made = model()
    optimizer = kind(made.parameters())
    with pytest.raises(TypeError, match="cannot exchange its parameters"):
        nplex.convert_(made, 4, optimizer=optimizer)
    assert type(made[0]) is nn.Linear
