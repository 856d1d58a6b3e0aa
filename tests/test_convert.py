import copy
import gc
import re
import time
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import nplex
from nplex.algebra import quaternion
from nplex.convert import parse_rule
from nplex.convert.report import OPTIMIZER, PASS_IT
from nplex.convert.twins import TWINS, make_twin
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
    assert str(done) == f"{promised}\n{OPTIMIZER}{PASS_IT}"
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
        (lambda name, module: isinstance(module, nn.Linear) and module.out_features == 32, {"blocks.0"}),
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
    with pytest.raises(ValueError, match=r"itself a Linear.*use nplex\.nn\.Linear\.like"):
        nplex.convert_(nn.Linear(8, 8), 4)


@pytest.mark.parametrize("rule", [0, True, 2.5])
def test_wrong_rules_are_refused_before_anything_changes(rule, unchecked):
    with pytest.raises((ValueError, TypeError), match="rule must be a positive integer, an Algebra or a Rule"):
        nplex.preview(Tied(), rule)


def test_torchs_transformer_runs_converted_in_training_and_in_its_fast_path():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0), 2)
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
    with pytest.raises(ValueError, match="the model is wrapped \\(OptimizedModule\\); change the model first"):
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
    assert "other modules with parameters, skipped: 2 LayerNorm (128)" in str(nplex.preview(model, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([nn.Linear(8, 8)], 2), "the model must be a torch.nn.Module, got list"),
        ((Own(), 2, 3), "where must be a name or pattern"),
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


KINDS = {
    "Linear(16, 24)": lambda: nn.Linear(16, 24),
    "Bilinear(8, 9, 10)": lambda: nn.Bilinear(8, 9, 10),
    "Embedding(50, 16)": lambda: nn.Embedding(50, 16, padding_idx=3),
    "EmbeddingBag(50, 16)": lambda: nn.EmbeddingBag(50, 16, mode="sum"),
    "Conv1d(16, 24, 3)": lambda: nn.Conv1d(16, 24, 3),
    "Conv2d(16, 24, 3x2, groups=2)": lambda: nn.Conv2d(16, 24, (3, 2), groups=2),
    "Conv3d(8, 8, 2x2x2)": lambda: nn.Conv3d(8, 8, 2, bias=False),
    "ConvTranspose1d(8, 16, 3)": lambda: nn.ConvTranspose1d(8, 16, 3),
    "ConvTranspose2d(8, 16, 3x3)": lambda: nn.ConvTranspose2d(8, 16, 3),
    "ConvTranspose3d(8, 8, 2x2x2)": lambda: nn.ConvTranspose3d(8, 8, 2),
    "RNN(16, 17)": lambda: nn.RNN(16, 17),
    "LSTM(16, 24, layers=2, bidirectional=True)": lambda: nn.LSTM(16, 24, 2, bidirectional=True),
    "GRU(16, 24)": lambda: nn.GRU(16, 24, bias=False),
    "RNNCell(16, 24)": lambda: nn.RNNCell(16, 24),
    "LSTMCell(16, 24)": lambda: nn.LSTMCell(16, 24),
    "GRUCell(16, 24)": lambda: nn.GRUCell(16, 24),
    "MultiheadAttention(16, heads=4)": lambda: nn.MultiheadAttention(16, 4),
}


class Base(nn.Module):
    """A model that can hold a shared rule."""

    def __init__(self, layer):
        super().__init__()
        self.parts = nn.ModuleDict({"deep": nn.ModuleList([nn.Sequential(nn.ReLU(), layer)])})


def all_layers(name, module):
    return True


def test_every_kind_that_has_a_twin_is_tried_here():
    tried = {type(make()) for make in KINDS.values()}
    assert TWINS.keys() - {nn.modules.linear.NonDynamicallyQuantizableLinear} == tried


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("label", KINDS)
def test_every_kind_of_layer_deep_inside(label, shared):
    model = Base(KINDS[label]().double()).eval()
    old = model.parts["deep"][0][1]
    dense = nplex.count(model)
    report = nplex.preview(model, 2, where=all_layers, shared=shared)
    assert str(nplex.convert_(model, 2, where=all_layers, shared=shared)) == f"{report}\n{OPTIMIZER}{PASS_IT}"
    new, (row,) = model.parts["deep"][0][1], report.rows
    assert type(new) is TWINS[type(old)]
    assert (row.name, row.was, row.now) == ("parts.deep.0.1", label, label[:-1] + ", rule=2)")
    assert report.total_after == sum(p.numel() for p in model.parameters()) < 0.8 * report.total_before
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())
    assert report.shared_rule == (8 if shared else 0)
    assert nplex.count(model).dense == dense.total == report.total_before
    assert nplex.count(model).total == nplex.count(model).layers == report.total_after
    again = nplex.convert_(model, 4, where=all_layers)
    assert [r.reason for r in again.rows] == ["already converted"]
    assert model.parts["deep"][0][1] is new


def test_a_layer_made_with_rules_of_several_parts_trains_and_freezes_with_its_weights():
    model = nn.Sequential(nn.MultiheadAttention(16, 4), nn.LSTM(16, 16))
    model[0].in_proj_weight.requires_grad_(False)
    model[1].requires_grad_(False)
    model[1].bias_hh_l0.requires_grad_(True)
    nplex.convert_(model, 2)
    attention = dict(model[0].named_parameters())
    assert not attention["in_proj_components"].requires_grad
    assert attention["out_proj.components"].requires_grad
    assert attention["rule.table"].requires_grad
    assert [name for name, p in model[1].named_parameters() if p.requires_grad] == ["bias_hh_l0"]


def test_embeddings_change_only_where_asked_for():
    model = nn.ModuleDict({"words": nn.Embedding(50, 16), "up": nn.Linear(16, 16), "bag": nn.EmbeddingBag(50, 16)})
    for where in (None, nplex.all_but("nothing")):
        found = rows(nplex.preview(model, 4, where=where))
        assert [row.changes for row in found.values()] == [False, True, False]
        assert found["words"].reason == "an embedding"
    assert rows(nplex.preview(model, 4, where=nplex.only("words")))["words"].changes
    assert rows(nplex.preview(model, 4, where=lambda name, module: name == "bag"))["bag"].changes


def test_a_tied_embedding_and_head_stay_even_if_both_are_asked_for():
    model = Tied()
    found = rows(nplex.preview(model, 4, where=nplex.only("words", "head")))
    assert found["words"].reason == "its weight is tied to head.weight"
    assert found["head"].reason == "its weight is tied to words.weight"


def test_what_like_refuses_stays_with_the_reason():
    model = nn.ModuleList([nn.Embedding(50, 16, sparse=True), nn.Conv2d(16, 16, 3, groups=16), nn.GRU(16, 2)])
    found = rows(nplex.preview(model, 4, where=all_layers))
    assert "sparse" in found["0"].reason
    assert "n = 4 is larger than in_channels / groups = 1" in found["1"].reason
    assert "n = 4 is larger than hidden_size = 2" in found["2"].reason


def test_attention_is_one_layer():
    model = nn.ModuleList([nn.MultiheadAttention(16, 2), nn.MultiheadAttention(16, 2)])
    model[1].out_proj.weight = nn.Parameter(torch.zeros(16, 17))
    found = rows(nplex.preview(model, 4))
    assert list(found) == ["0", "1"]
    assert "out_proj.weight (16, 17)" in found["1"].reason
    assert rows(nplex.preview(model, 4, where=nplex.only("*.out_proj")))["0"].reason == "not selected by where"
    model[0].out_proj.weight = model[1].out_proj.weight
    assert rows(nplex.preview(model, 4))["0"].reason == "its out_proj.weight is tied to 1.out_proj.weight"


class Conv1D(nn.Module):
    """As transformers' layer: its weight is transposed."""

    __module__ = "transformers.pytorch_utils"

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))


def test_transposed_linear_layers_of_transformers():
    model = nn.Sequential(Conv1D(48, 16))
    report = nplex.convert_(model, 4)
    assert report.rows[0].now == "Linear(16, 48, rule=4)"
    assert (report.rows[0].was, model[0].in_features, model[0].out_features) == ("Conv1D(16, 48)", 16, 48)
    assert model(torch.randn(2, 16)).shape == (2, 48)


def test_different_rules_for_different_parts():
    model = nn.ModuleDict({
        part: nn.ModuleList([nn.Linear(16, 16)]) for part in ("encoder", "decoder", "head", "more")
    })
    spec = {"encoder.*": 4, "decoder.*": quaternion, "head.*": None, "enc*": 2, "typo.*": 2}
    report = nplex.preview(model, spec)
    assert str(nplex.convert_(model, spec)) == f"{report}\n{OPTIMIZER}{PASS_IT}"
    assert isinstance(model["encoder"][0].rule, LearnedRule)
    assert isinstance(model["decoder"][0].rule, FixedRule)
    assert [row.reason for row in report.rows[2:]] == [
        "skipped by the rule for 'head.*'",
        "its name matches no pattern of the rules",
    ]
    assert [row.now for row in report.rows[:2]] == ["Linear(16, 16, rule=4)", "Linear(16, 16, rule=quaternion)"]
    assert report.unmatched == ("enc*", "typo.*")
    assert "patterns that no layer matches: 'enc*', 'typo.*'" in str(report)


def test_shared_rules_one_for_each_pattern():
    model = Own()
    model.c, model.d, model.e = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
    given = nplex.nn.share(nn.Module(), LearnedRule(2))
    spec = {"[ab]": 4, "c": LearnedRule(4, 7), "d": given, "unused": 2, "e": None}
    report = nplex.convert_(model, spec, shared=True)
    assert model.a.rule is model.b.rule is model.rule
    assert model.c.rule is model.rule_1
    assert model.rule_1.rank == 7
    assert model.d.rule is given
    assert not hasattr(model, "rule_2")
    assert report.shared_rule == 64 + 3 * 28
    assert report.total_after == sum(p.numel() for p in model.parameters())


def test_a_name_that_is_taken_keeps_all_shared_rules_out():
    model = Own()
    model.rule_1 = nn.Identity()
    before = list(model.modules())
    with pytest.raises(ValueError, match="already has an attribute 'rule_1'"):
        nplex.convert_(model, {"a": 2, "b": 4}, shared=True)
    assert list(model.modules()) == before
    assert not hasattr(model, "rule")


def test_names_of_one_layer_that_match_different_rules():
    found = rows(nplex.preview(Tied(), {"first": 2, "*": 4}))
    assert found["first"].reason == "its names match different rules"


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({}, TypeError, "a mapping of rules needs patterns"),
        ({1: 4}, TypeError, "a mapping of rules needs patterns"),
        ({"a": 4, "b": 0}, ValueError, "'b': rule must be a positive integer.*got 0"),
        ({"b": "four"}, ValueError, "'b': a rule is dense, a number n.*got 'four'"),
        (None, TypeError, "^rule must be a positive integer.*got None"),
    ],
)
def test_wrong_mappings_are_refused(rule, error, message, unchecked):
    with pytest.raises(error, match=message):
        nplex.preview(Own(), rule)


def test_a_text_from_where_is_the_reason_to_stay():
    def where(name, module):
        return "too dear" if name == "first" else name != "blocks.0"

    found = rows(nplex.preview(Tied(), 4, where=where))
    assert found["first"].reason == "too dear"
    assert found["blocks.0"].reason == "not selected by where"
    assert found["blocks.1"].changes


SENSIBLE = {
    "lm_head": (nn.Linear(512, 512), "an output head by its name (lm_head)"),
    "cls.predictions.transform.dense": (nn.Linear(512, 512), "an output head by its name (cls)"),
    "model.value_head.0": (nn.Linear(512, 512), "an output head by its name (value_head)"),
    "fc": (nn.Linear(512, 512), "an output head by its name (fc)"),
    "words": (nn.Embedding(5000, 64), "an embedding"),
    "layers.0.mlp.gate": (nn.Linear(512, 8), "a router by its name and its few outputs"),
    "layers.0.small": (nn.Linear(64, 63), "tiny: 4,032 weights, fewer than 4,096"),
    "stem": (nn.Conv2d(3, 64, 7), "a convolution from 3 channels, as an image has"),
    "last": (nn.ConvTranspose2d(128, 3, 4), "a convolution to 3 channels, as an image has"),
    "block.depthwise": (nn.Conv2d(512, 512, 3, groups=512), "a depthwise convolution"),
    "layers.0.se.fc": (nn.Linear(512, 512), ""),
    "down.attentions.0.proj_out": (nn.Linear(512, 512), ""),
    "layers.0.ffn.gate": (nn.Linear(512, 2048), ""),
    "bert.pooler.dense": (nn.Linear(512, 512), ""),
    "layers.0.self_attn": (nn.MultiheadAttention(64, 4), ""),
    "layers.0.multi_head_attn.q": (nn.Linear(64, 64), ""),
    "tagger": (nn.LSTM(64, 64), ""),
    "block.conv": (nn.Conv2d(64, 64, 3), ""),
}


@pytest.mark.parametrize("name", SENSIBLE)
def test_sensible(name):
    module, reason = SENSIBLE[name]
    assert nplex.sensible(name, module) == (reason or True)


def test_sensible_in_a_preview_and_combined():
    model = nn.ModuleDict({"body": nn.Linear(64, 64), "more": nn.Linear(64, 64), "lm_head": nn.Linear(64, 512)})
    found = rows(nplex.preview(model, 4, where=nplex.sensible))
    assert found["lm_head"].reason == "an output head by its name (lm_head)"
    assert [row.changes for row in found.values()] == [True, True, False]
    for order in (1, -1):
        where = nplex.all_of(*[nplex.sensible, nplex.only("body", "lm_head")][::order])
        assert [row.changes for row in nplex.preview(model, 4, where=where).rows] == [True, False, False]
    with pytest.raises(TypeError, match="all_of needs conditions"):
        nplex.all_of()


def wrapped(name, module):
    """A module of a foreign class by its name, as PEFT's, whose package is not installed here."""
    kind = type(name, (nn.Module,), {})
    outer = kind()
    outer.base = module
    return outer


@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (torch.compile, r"the model is wrapped \(OptimizedModule\); change the model first, compile it then"),
        (nn.DataParallel, r"the model is wrapped \(DataParallel\); change the model first, wrap it then"),
        (lambda m: nn.Sequential(wrapped("FSDPModule", m)), r"0 is wrapped \(FSDPModule\)"),
        (
            lambda m: wrapped("PeftModel", m),
            r"the model has adapters \(PeftModel\); merge or unload.*merge_and_unload",
        ),
        (lambda m: nn.Sequential(m, wrapped("BaseTunerLayer", Own())), r"1 has adapters \(BaseTunerLayer\)"),
    ],
)
def test_wrapped_models_and_adapters_are_refused_with_what_to_do(wrap, message):
    for function in (nplex.preview, nplex.convert_):
        with pytest.raises(ValueError, match=message):
            function(wrap(Own()), 4)


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def quantized(layer):
    kind = type("Linear4bit", (nn.Linear,), {"__module__": "bitsandbytes.nn.modules"})
    layer.__class__ = kind


class Strange(torch.Tensor):
    """As a quantized or distributed tensor in a parameter's place."""


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda m: parametrize.register_parametrization(m, "weight", Scaled()),
            "its weight is parametrized: .*remove_p",
        ),
        (nn.utils.parametrizations.spectral_norm, "its weight is parametrized"),
        (nn.utils.weight_norm, "has WeightNorm: make that permanent first .remove_weight_norm."),
        (nn.utils.spectral_norm, "has SpectralNorm"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "its weight is pruned: .*prune.remove"),
        (quantized, "Linear4bit of bitsandbytes is quantized: convert the model in full precision"),
        (
            lambda m: setattr(m, "weight", nn.Parameter(m.weight.as_subclass(Strange))),
            "its weight is a Strange, quant",
        ),
        (lambda m: m.compile(), "is compiled"),
        (lambda m: setattr(m, "bias", nn.Parameter(m.bias.half())), "its numbers are of several kinds"),
        (lambda m: setattr(m, "weight", nn.Parameter(torch.empty(0))), r"not of the sizes .* weight \(0,\)"),
    ],
)
def test_special_layers_stay_with_what_to_do(change, reason):
    model = Own()
    change(model.a)
    found = rows(nplex.preview(model, 4))
    assert re.search(reason, found["a"].reason)
    assert found["b"].changes
    a = model.a
    nplex.convert_(model, 4)
    assert model.a is a


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantized_layers_that_are_no_linear_have_a_row():
    model = Own()
    model.a = torch.ao.nn.quantized.dynamic.Linear(16, 16)
    assert "Linear of torch is quantized" in rows(nplex.preview(model, 4))["a"].reason


def test_a_preview_takes_no_memory_and_little_time():
    with torch.device("meta"):
        make = [lambda: nn.MultiheadAttention(1120, 8), lambda: nn.Linear(1120, 4480), lambda: nn.Linear(4480, 1120)]
        model = nn.ModuleList(layer() for _ in range(67) for layer in make)
    nplex.preview(model[:1], 8)  # torch imports what it needs for sizes
    begin = time.process_time()
    report = nplex.preview(model, 8)
    assert time.process_time() - begin < 5
    assert report.total_before > 1e9
    assert all(row.changes for row in report.rows)


def test_an_error_in_the_last_layer_leaves_the_model_as_it_was(monkeypatch):
    model, made = Own(), []
    before = list(model.modules())

    def fails(old, rule, low_rank):
        made.append(old)
        if len(made) == 2:
            raise RuntimeError("out of memory")
        return make_twin(old, rule, low_rank)

    monkeypatch.setattr("nplex.convert.swap.make_twin", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        nplex.convert_(model, 4, shared=True)
    assert list(model.modules()) == before
    assert not hasattr(model, "rule")


def test_old_weights_are_freed():
    model = Own()
    old = weakref.ref(model.a.weight)
    nplex.convert_(model, 4)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("label", KINDS)
def test_rules_of_every_kind_of_layer_are_factorized(label):
    model = Base(KINDS[label]().double())
    nplex.convert_(model, 2, where=all_layers)
    dense = copy.deepcopy(model)
    report = nplex.factorize_(model)
    assert all(row.changes for row in report.rows)
    assert sum(1 for m in model.modules() if isinstance(m, LearnedRule)) == len(report.rows)
    for folded in (model, dense):
        nplex.fold_(folded)
    for (name, p), (_, q) in zip(model.named_parameters(), dense.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=name)
