import re

import pytest
import torch
from torch import nn

import nplex
from nplex.algebra import quaternion
from nplex.convert import parse_rule
from nplex.nn import FixedRule, LearnedRule, Linear


class Tied(nn.Module):
    """A module used twice, a weight tied to an embedding, and a subclass of Linear."""

    class Own(nn.Linear):
        pass

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, 16)
        self.first = nn.Linear(16, 16)
        self.again = self.first
        self.blocks = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 16)])
        self.own = self.Own(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words):
        x = self.again(self.first(self.words(words)))
        return self.head(self.own(self.blocks[1](self.blocks[0](x))))


def rows(report):
    return {row.name: row for row in report.rows}


def test_preview_changes_nothing_and_says_all():
    model = Tied()
    before = {name: type(module) for name, module in model.named_modules()}
    report = nplex.preview(model, rule=4)
    assert {name: type(module) for name, module in model.named_modules()} == before
    found = rows(report)
    assert found["first"].also == ("again",)
    assert found["head"].reason == "its weight is tied to words.weight"
    assert "subclass of torch's Linear" in found["own"].reason
    assert [name for name, row in found.items() if row.changes] == ["first", "blocks.0", "blocks.1"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rule", [2, 4, quaternion, LearnedRule(4, 7), FixedRule(quaternion)])
def test_convert_does_what_preview_said(rule, shared):
    model = Tied()
    promised = nplex.preview(model, rule, shared=shared)
    done = nplex.convert_(model, rule, shared=shared)
    assert str(done) == str(promised)
    assert sum(p.numel() for p in model.parameters()) == done.total_after < done.total_before
    assert model.first is model.again
    assert model.head.weight is model.words.weight
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_each_layer_gets_a_rule_of_its_own_like_the_one_given():
    model = Tied()
    template = LearnedRule(4, 7)
    nplex.convert_(model, template)
    rules = {m.rule for m in model.modules() if isinstance(m, Linear)}
    assert len(rules) == 3
    assert template not in rules
    assert {rule.rank for rule in rules} == {7}
    assert len({rule.decode.sum().item() for rule in rules}) == 3


def test_shared_registers_one_rule_at_the_base():
    model = Tied()
    nplex.convert_(model, 4, shared=True)
    assert {m.rule for m in model.modules() if isinstance(m, Linear)} == {model.rule}
    assert nplex.nn.missing_rules(model) == []


def test_converting_twice_changes_nothing():
    model = Tied()
    nplex.convert_(model, 4)
    layers = list(model.modules())
    report = nplex.convert_(model, 8)
    assert list(model.modules()) == layers
    assert not any(row.changes for row in report.rows)
    assert rows(report)["first"].reason == "already converted"


def test_device_dtype_mode_and_frozen_weights_are_kept():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).to(torch.bfloat16).eval()
    model[1].requires_grad_(False)
    nplex.convert_(model, 4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model[0].parameters())
    assert not any(p.requires_grad for p in model[1].parameters())
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(16, 16))
    nplex.convert_(model, 4)
    assert model[0].components.is_meta
    assert model[0].rule.table.is_meta


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (nplex.only("blocks.*"), {"blocks.0", "blocks.1"}),
        (nplex.only("first", "again", "*.1"), {"first", "blocks.1"}),
        (nplex.only("first"), set()),
        (nplex.all_but("blocks.*"), {"first"}),
        (lambda name, module: module.out_features == 32, {"blocks.0"}),
    ],
)
def test_where_chooses(where, names):
    assert {r.name for r in nplex.preview(Tied(), 4, where=where).rows if r.changes} == names


def test_patterns_must_not_be_empty():
    with pytest.raises(ValueError, match="only needs at least one pattern"):
        nplex.only()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Linear(16, 3)), "n = 4 is larger than out_features = 3"),
        (nn.Sequential(nn.Linear(4, 4)), "would have 72 parameters, not fewer"),
        (nn.Sequential(nn.ReLU()), "nothing to convert in Sequential"),
    ],
)
def test_nothing_to_convert_says_why(model, reason):
    with pytest.raises(ValueError, match=reason):
        nplex.convert_(model, 4)


def test_hooks_would_be_lost():
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].register_forward_hook(lambda module, x, y: y)
    assert "has hooks" in rows(nplex.preview(model, 4))["0"].reason


def test_a_linear_layer_itself_cannot_be_replaced_in_place():
    with pytest.raises(ValueError, match=r"itself a linear layer.*use nplex\.nn\.Linear"):
        nplex.convert_(nn.Linear(8, 8), 4)


@pytest.mark.parametrize("rule", [0, True, "4"])
def test_wrong_rules_are_refused_before_anything_changes(rule, unchecked):
    with pytest.raises((ValueError, TypeError), match="rule must be a positive integer, an Algebra or a Rule"):
        nplex.preview(Tied(), rule)


def test_torchs_transformer_runs_converted_in_training_and_in_its_fast_path():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0), 2)
    nplex.convert_(model, 4)
    x = torch.randn(2, 5, 32)
    slow = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), slow, rtol=1e-4, atol=1e-5)


def test_count():
    model = Tied()
    dense = nplex.count(model)
    nplex.convert_(model, 4, shared=True)
    found = nplex.count(model)
    assert dense.layers == dense.rules == 0
    assert found.dense == dense.total == dense.dense
    assert found.rules == 64
    assert found.total == sum(p.numel() for p in model.parameters())
    assert "of these rules 64" in str(found)


def test_parse_rule():
    assert parse_rule("dense") is None
    assert parse_rule("8").n == 8
    assert parse_rule("4:7").rank == 7
    assert parse_rule("clifford(3,0,0)").algebra.n == 8


@pytest.mark.parametrize("text", ["0", "4:0", "4:", ":7", "4:7:1", "true", "", "-4", "4.5", "quaternions"])
def test_parse_rule_refuses_the_rest(text):
    with pytest.raises(ValueError, match=r"a rule is dense, a number n \(learned\), n:R"):
        parse_rule(text)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.b(self.a(x))


def test_an_error_leaves_the_model_as_it_was():
    model = Own()
    model.b = model.b.double()
    before = list(model.modules())
    with pytest.raises(ValueError, match=r"the rule is torch\.float32 on cpu, the layer torch\.float64 on cpu"):
        nplex.convert_(model, 4, shared=True)
    assert list(model.modules()) == before
    assert not hasattr(model, "rule")


@pytest.mark.parametrize("kind", [nn.Sequential, nn.ModuleList])
def test_a_container_cannot_hold_a_shared_rule(kind):
    model = kind([nn.Linear(16, 16)]) if kind is nn.ModuleList else kind(nn.Linear(16, 16))
    for function in (nplex.preview, nplex.convert_):
        with pytest.raises(ValueError, match=r"calls or lists its children.*self\.net = \.\.\."):
            function(model, 4, shared=True)
    assert len(model) == 1


def test_a_rule_shared_already_is_used_itself():
    model = Own()
    rule = nplex.nn.share(model, LearnedRule(2))
    report = nplex.convert_(model, rule)
    assert model.a.rule is model.b.rule is rule
    assert report.total_after == sum(p.numel() for p in model.parameters())


def test_wrapped_models_are_refused():
    compiled = torch.compile(Own())
    with pytest.raises(ValueError, match="the model is wrapped \\(OptimizedModule\\); convert the model first"):
        nplex.convert_(compiled, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.register_buffer("scale", torch.ones(1)), "holds more than weight and bias.*scale"),
        (lambda m: m.add_module("inner", nn.Linear(2, 2)), "holds more than weight and bias.*inner"),
        (lambda m: setattr(m, "forward", lambda x: x), "its own forward"),
        (lambda m: m.weight.register_hook(lambda g: g), "has hooks"),
        (lambda m: m.register_full_backward_pre_hook(lambda *a: None), "has hooks"),
        (
            lambda m: setattr(m, "weight", nn.Parameter(torch.ones(16, 16, dtype=torch.uint8), False)),
            "its weight is torch.uint8, not floating point",
        ),
    ],
)
def test_what_would_be_lost_keeps_a_layer(change, reason):
    model = Own()
    change(model.a)
    assert re.search(reason, rows(nplex.preview(model, 4))["a"].reason)


def test_lazy_layers_wait_for_their_first_batch():
    model = nn.Sequential(nn.LazyLinear(8))
    assert "run one batch first" in rows(nplex.preview(model, 4))["0"].reason


def test_other_parameters_are_told():
    model = nn.TransformerEncoderLayer(32, 4, 64)
    assert "1 MultiheadAttention (3,168), 2 LayerNorm (128)" in str(nplex.preview(model, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([nn.Linear(8, 8)], 2), "the model must be a torch.nn.Module, got list"),
        ((Own(), 2, "a"), "where must be a function"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, unchecked):
    model, rule, *where = arguments
    with pytest.raises(TypeError, match=message):
        nplex.convert_(model, rule, where=where[0] if where else None)


def test_count_of_a_part_without_its_shared_rule():
    model = Own()
    nplex.convert_(model, 4, shared=True)
    part = nplex.count(model.a)
    assert (part.total, part.layers, part.rules, part.dense) == (80, 80, 0, 272)
