"""nplex.optim: one step of a layer lowers the loss as much as one step of the dense layer does."""

import copy

import pytest
import torch
from layer_cases import LAYERS
from torch import nn

from nplex import algebra, convert_, optim
from nplex.nn import Conv2d, Embedding, LearnedRule, Linear, LowRankLinear, Rule, share

RULES = [
    1, 2, 4, 8, 16, LearnedRule(4, rank=4), LearnedRule(4, rank=7), LearnedRule(8, rank=8), LearnedRule(8, rank=24),
    algebra.complex_, algebra.dual, algebra.quaternion, algebra.octonion, algebra.direct(4), algebra.cyclic(5),
    algebra.matrices(2), LearnedRule(4, norm=4.0),
]  # fmt: skip
LAYER = {
    "Linear": (lambda rule: Linear(160, 320, rule=rule), lambda: torch.randn(256, 160)),
    "Conv2d": (lambda rule: Conv2d(80, 80, 3, rule=rule), lambda: torch.randn(4, 80, 9, 9)),
    "Embedding": (lambda rule: Embedding(1600, 80, rule=rule), lambda: torch.randperm(1600)[:12]),
}


def fresh(rule):
    return copy.deepcopy(rule) if isinstance(rule, Rule) else rule


def decrease(parameters, optimizer):
    """To first order in the rate: the gradient times the step of each optimizer."""
    if optimizer == "sgd":
        return sum(p.grad.square().sum() for p in parameters)
    sizes = [p.detach().square().mean().sqrt() if optimizer == "adafactor" else 1.0 for p in parameters]
    return sum(p.grad.abs().sum() * size for p, size in zip(parameters, sizes, strict=True))


def weights(layer):
    return [
        p for name, p in layer.named_parameters(recurse=False) if name in ("weight", "components", "left", "right")
    ]


def decrease_of_both(layer, other, x, optimizer):
    """Of two layers with the same random gradients at their outputs."""
    for each in (layer, other):
        torch.manual_seed(1)
        y = each(x)
        y.backward(torch.randn_like(y))
    return decrease(weights(layer), optimizer), decrease(weights(other), optimizer)


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: getattr(rule, "name", str(rule)))
@pytest.mark.parametrize("kind", LAYER)
def test_a_step_lowers_the_loss_as_one_of_the_dense_layer(kind, rule, optimizer):
    torch.manual_seed(0)
    make, inputs = LAYER[kind]
    layer = make(fresh(rule))
    ours, dense = decrease_of_both(layer, layer.to_torch(), inputs(), optimizer)
    assert optim.factor(layer, optimizer) * ours == pytest.approx(
        float(dense), rel=0.3 if kind == "Embedding" else 0.15
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rule", [2, 5, 8], ids=lambda rule: getattr(rule, "name", str(rule)))
def test_the_dense_rate_is_right_for_adam_and_layers_with_n(name, rule):
    layer = LAYERS[name].make(10, rule=rule)
    for step in optim.explain(layer).steps:
        assert step.adamw == pytest.approx(1, rel=0.05 if "Embedding" in step.layer else 1e-4), step


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearnedRule(4), lambda: LearnedRule(4, rank=4), lambda: LearnedRule(8, rank=24),
        lambda: LearnedRule(5, rank=20), lambda: LearnedRule(4, start=algebra.quaternion),
        lambda: LearnedRule(4, rank=8, start=algebra.quaternion), lambda: LearnedRule(3, start=algebra.direct(3)),
    ],
)  # fmt: skip
def test_the_dense_rate_is_right_for_adam_and_learned_rules(make):
    layer = Linear(20, 40, rule=make())
    assert optim.factor(layer, "adamw") == pytest.approx(1, rel=1e-5)
    faces = algebra.as_table(layer.rule()).detach().flatten(1).norm(dim=1).sum()
    assert float(faces) == pytest.approx(layer.rule.n**2, rel=1e-5)
    assert float(algebra.as_table(layer.rule()).detach().norm()) == pytest.approx(layer.rule.initial_norm, rel=1e-5)


@pytest.mark.parametrize("rule", [4, LearnedRule(4, rank=7)], ids=lambda rule: getattr(rule, "name", str(rule)))
def test_the_dense_rate_is_right_for_adam_and_nearest_weights(rule):
    model = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))
    convert_(model, rule, weights="nearest")
    for layer in model:
        table = algebra.as_table(layer.rule()).detach()
        assert float(table.flatten(1).norm(dim=1).sum()) == pytest.approx(16, rel=1e-3)


def test_a_model_that_goes_on_has_the_same_groups():
    layer = Linear(16, 32, rule=4)
    before = [group["lr"] for group in optim.param_groups(layer, lr=1.0)]
    with torch.no_grad():
        layer.rule.table.mul_(1.3).add_(0.1)
    assert [group["lr"] for group in optim.param_groups(layer, lr=1.0)] == before


def test_norm_n_is_right_for_sgd():
    assert optim.factor(Linear(16, 32, rule=LearnedRule(4, norm=4.0)), "sgd") == pytest.approx(1)
    with pytest.raises(ValueError, match="norm must be a positive number"):
        LearnedRule(4, norm=0.0)


@pytest.mark.parametrize("optimizer", optim.OPTIMIZERS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: getattr(rule, "name", str(rule)))
def test_components_of_low_rank_are_compared_with_a_dense_product_of_that_rank(rule, optimizer):
    torch.manual_seed(0)
    layer = LowRankLinear(320, 640, rule=fresh(rule), low_rank=8)
    dense = LowRankLinear(320, 640, rule=1, low_rank=8)
    ours, theirs = decrease_of_both(layer, dense, torch.randn(256, 320), optimizer)
    assert optim.factor(layer, optimizer) * ours == pytest.approx(float(theirs), rel=0.2)


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_is_in_one_group(name):
    layer = LAYERS[name].make(8, rule=4)
    layer.extra = nn.Linear(3, 3)
    groups = optim.param_groups(layer, lr=1e-2, weight_decay=0.1)
    grouped = [p for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(layer.parameters())
    for group in groups:
        if group["name"] in ("rules", "no decay"):
            assert (group["lr"], group["weight_decay"]) == (1e-2, 0.0)
        elif group["weight_decay"]:
            assert group["lr"] * group["weight_decay"] == pytest.approx(1e-3)
    assert len([g for g in groups if "components" in g["name"]]) >= 1


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 40, bias=False)
        self.words = nn.Embedding(40, 16)
        self.norm = nn.LayerNorm((3, 16))
        self.body = nn.Linear(16, 16)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.norm(self.body(self.words(ids))))


def test_what_has_no_decay():
    model = Words()
    convert_(model, algebra.quaternion, where=lambda name, module: name == "body")
    model.body.components.requires_grad_(False)
    groups = optim.param_groups(model, lr=0.5, weight_decay=0.1, rule_lr=0.1)
    spared = [p for group in groups if group["weight_decay"] == 0 for p in group["params"]]
    assert set(spared) == {model.words.weight, model.norm.weight, model.norm.bias, model.body.bias}
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_rules_have_their_rate_and_a_shared_one_is_there_once():
    model = nn.Module()
    rule = share(model, LearnedRule(4))
    model.up, model.down = Linear(8, 16, rule=rule), Linear(16, 8, rule=rule)
    groups = {group["name"]: group for group in optim.param_groups(model, lr=0.5, weight_decay=0.1, rule_lr=0.1)}
    assert [*groups["rules"]["params"]] == [rule.table]
    assert groups["rules"]["lr"] == 0.1
    assert len(groups["components x 1"]["params"]) == 2
    assert groups["components x 1"]["lr"] == 0.5


@pytest.mark.parametrize("name", ["AdamW", "SGD", "Adafactor"])
def test_with_an_optimizer_and_a_scheduler(name):
    torch.manual_seed(0)
    model = nn.Sequential(Linear(16, 32, rule=4), nn.ReLU(), nn.Linear(32, 1))
    optimizer = getattr(torch.optim, name)(optim.param_groups(model, lr=1e-2, optimizer=name.lower()))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = [group["lr"] for group in optimizer.param_groups]
    x, first = torch.randn(64, 16), None
    for _ in range(8):
        loss = (model(x) - x[:, :1]).square().mean()
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 2 for rate in before])
    assert float(loss.detach()) < first


def test_explained():
    model = nn.Sequential(Linear(16, 32, rule=algebra.quaternion), nn.Linear(32, 2))
    text = str(optim.explain(model))
    assert "Linear(16, 32, rule=quaternion)   2.00  1.00       2.00" in text
    assert str(optim.explain(nn.Linear(2, 2))) == "no hypercomplex layers: every factor is 1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of adamw, sgd, adafactor; got 'adam'"),
        ({"lr": -1.0}, "lr must be 0 or more, got -1.0"),
        ({"lr": float("nan")}, "lr must be 0 or more, got nan"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"rule_lr": -0.1}, "rule_lr must be 0 or more"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(ValueError, match=said):
        optim.param_groups(nn.Linear(2, 2), **{"lr": 0.1} | options)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter of this model requires a gradient"):
        optim.param_groups(nn.Linear(2, 2).requires_grad_(False), lr=0.1)


def test_with_accelerate():
    accelerate = pytest.importorskip("accelerate")
    model = nn.Sequential(Linear(16, 32, rule=LearnedRule(4, norm=4.0)), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(optim.param_groups(model, lr=1e-2, weight_decay=0.1))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    before = [p.detach().clone() for p in model.parameters()]
    accelerator.backward(model(torch.randn(4, 16)).square().sum())
    optimizer.step()
    schedule.step()
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    rates = [group["lr"] for group in optimizer.param_groups]
    assert sorted(set(rates)) == pytest.approx([0.005, 0.01])


@pytest.mark.slow
def test_with_the_trainer_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    model = transformers.BertForSequenceClassification(config)
    convert_(model, LearnedRule(4, norm=4.0))
    optimizer = torch.optim.AdamW(optim.param_groups(model, lr=1e-2, weight_decay=0.1))
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True
    )
    data = [{"input_ids": [3, 1, 4, i % 30], "labels": i % 2} for i in range(8)]
    before = model.bert.pooler.dense.components.detach().clone()
    transformers.Trainer(model, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    assert not torch.equal(before, model.bert.pooler.dense.components)
    assert max(group["initial_lr"] for group in optimizer.param_groups) == pytest.approx(2e-2)
