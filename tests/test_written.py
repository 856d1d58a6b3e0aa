"""Rules and layers as people write them: every form, in every place that takes one."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import nplex
from nplex.algebra import named
from nplex.cli.models import layers
from nplex.convert import parse_rule
from nplex.nn import LowRankLinear, as_rule
from nplex.nn.written import table_of_json

CUBE = named("quaternion").table
LAYERS = {
    "Linear": (8, 8), "Bilinear": (8, 8, 8), "Embedding": (12, 8), "EmbeddingBag": (12, 8),
    "Conv1d": (8, 8, 3), "ConvTranspose2d": (8, 8, 3), "RNN": (8, 8), "LSTMCell": (8, 8),
    "MultiheadAttention": (8, 2), "TransformerEncoderLayer": (8, 2, 16), "Transformer": (8, 2, 1, 1, 16),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    (file := tmp_path / "mine.json").write_text(json.dumps({"table": CUBE.tolist()}))
    return file


def forms(path):
    numbers = [CUBE, CUBE.numpy(), CUBE.tolist(), CUBE.int(), path, str(path), "quaternion", named("quaternion")]
    return [(form, ("fixed", None)) for form in numbers] + [
        (4, ("learned", None)), (np.int64(4), ("learned", None)), ("4", ("learned", None)), ("4:7", ("learned", 7)),
    ]  # fmt: skip


def kind(rule):
    learned = isinstance(rule, nplex.nn.LearnedRule)
    return ("learned", rule.rank) if learned else ("fixed", None)


def test_every_form_of_a_rule_in_a_layer_and_in_a_conversion(path):
    for form, expected in forms(path):
        assert kind(as_rule(form)) == expected
        assert kind(nplex.nn.Linear(8, 8, rule=form).rule) == expected
        for rule in (form, {"0": form}, {"0": form, "2": None}):
            model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
            assert nplex.preview(model, rule).rows[0].now == nplex.convert_(model, rule).rows[0].now
            assert kind(model[0].rule) == expected
        if expected[0] == "fixed":
            assert torch.equal(model[0].rule.algebra.table, CUBE)


@pytest.mark.parametrize("name", LAYERS)
def test_texts_in_every_kind_of_layer(name):
    layer = getattr(nplex.nn, name)(*LAYERS[name], rule="2:3")
    rules = [module for module in layer.modules() if isinstance(module, nplex.nn.LearnedRule)]
    assert {(rule.n, rule.rank) for rule in rules} == {(2, 3)}


def test_a_text_is_the_number_it_names():
    """As first values differ between kinds of layers, "4" is not simply a rule with n = 4."""
    model = nn.ModuleDict({"words": nn.Embedding(32, 16), "up": nn.Linear(16, 16)})
    other = nn.ModuleDict({"words": nn.Embedding(32, 16), "up": nn.Linear(16, 16)})
    nplex.convert_(model, "4", everything=True)
    nplex.convert_(other, 4, everything=True)
    for name in model:
        assert model[name].rule.initial_norm == other[name].rule.initial_norm


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("four", "a rule is dense, a number n"), ("0", "n and R must be 1 or more"), ("4:99", "above n\\^2"),
        ("999", "at most 256"), ("none.json", "there is no such file"), ([[1.0, 2.0]], "table must be"),
        (torch.full((2, 2, 2), torch.nan), "finite"), (torch.ones(2, 2, 2, dtype=torch.complex64), "finite|real"),
        (torch.ones(2, 2, 2, device="meta"), "real numbers"), (b"4", "rule must be"), (2.0, "rule must be"),
        ("dense", "dense"), (torch.zeros(2, 2, 2), "multiplies everything to zero"),
    ],
)  # fmt: skip
def test_wrong_rules_are_refused_in_words(rule, message, unchecked):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
    calls = [
        lambda: nplex.nn.Linear(16, 16, rule=rule), lambda: nplex.convert_(model, rule),
        lambda: nplex.preview(model, rule), lambda: nplex.adapters.add_(model, rule),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
            call()
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("text", ["{", '{"a": 1}', "[[[1]], 2]", "[" * 5000, "[[[NaN]]]", '["__import__"]'])
def test_a_damaged_file_is_named(tmp_path, text, unchecked):
    (path := tmp_path / "own.json").write_text(text)
    for call in (lambda: as_rule(path), lambda: table_of_json(path)):
        with pytest.raises(ValueError, match="own"):
            call()


def test_parse_rule_and_low_rank():
    assert parse_rule("dense") is None
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    nplex.convert_(model, {"0": "low-rank:0.5", "*": "dense"})
    assert isinstance(model[0], LowRankLinear)
    assert type(model[2]) is nn.Linear
    with pytest.raises(ValueError, match=r"as a layer it is nplex\.nn"):
        nplex.nn.Linear(8, 8, rule="low-rank:4")


class Model(nn.Module):
    """As most are: words, blocks, a router, and a head, under names that may say nothing."""

    def __init__(self, head="head", outputs=8):
        super().__init__()
        self.words = nn.Embedding(48, 32)
        self.encoder = nn.ModuleList([
            nn.ModuleDict({"up": nn.Linear(32, 64), "gate": nn.Linear(32, 4), "down": nn.Linear(64, 32)})
            for _ in range(2)
        ])
        self.setup(head, outputs)

    def setup(self, head, outputs):
        self.add_module(head, nn.Linear(32, outputs))


def changed(model, **options):
    return {row.name for row in nplex.preview(model, 2, **options).rows if row.changes}


BODY = {"encoder.0.up", "encoder.0.down", "encoder.1.up", "encoder.1.down"}
REST = {"words", "encoder.0.gate", "encoder.1.gate"}


@pytest.mark.parametrize(
    ("head", "outputs"), [("head", 8), ("classifier", 32), ("lm_head", 64), ("last", 8), ("predict", 48)]
)
def test_one_default_whatever_the_head_is_called(head, outputs):
    model = Model(head, outputs)
    report = nplex.preview(model, 2)
    assert {row.name for row in report.rows if row.changes} == BODY
    reasons = {row.name: row.reason for row in report.rows}
    assert reasons["words"] == "an embedding"
    assert reasons["encoder.0.gate"].startswith("a router")
    assert reasons[head].startswith("an output head")
    assert "4 of them dense by default; to convert them too: everything=True (--everything)" in str(report)
    assert changed(model, everything=True) == BODY | REST | {head}
    for narrower in (nplex.all_but("encoder.1"), nplex.all_of(nplex.all_but("encoder.1"), nplex.sensible)):
        assert changed(model, where=narrower) <= BODY - {"encoder.1.up", "encoder.1.down"}
    assert changed(model, where=nplex.all_but("encoder"), everything=True) == {"words", head}
    assert changed(model, where=head) == {head}
    named = nplex.preview(model, {head: 2, "words": 4, "encoder.*": 2}).rows
    assert {row.name for row in named if row.changes} == BODY | {head, "words"}
    made = nplex.convert_(model, 2)
    assert {row.name for row in made.rows if row.changes} == BODY


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)), nn.Sequential(nn.Linear(64, 8)),
        nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)),
        nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 8), nn.Linear(8, 64), nn.Linear(64, 32)),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 128, batch_first=True), 2),
        nn.Sequential(nn.Embedding(128, 32), nn.Linear(32, 128), nn.Linear(128, 32)),
    ],
)  # fmt: skip
def test_a_last_layer_is_not_a_head_where_nothing_says_so(model):
    rows = nplex.preview(model, 2).rows
    assert all(row.changes for row in rows if row.was[:9] != "Embedding")


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("up", {"encoder.0.up", "encoder.1.up"}), (["up", "words"], {"words", "encoder.0.up", "encoder.1.up"}),
        ("encoder.0", {"encoder.0.up", "encoder.0.gate", "encoder.0.down"}), ("*.1.*", None), (("head",), {"head"}),
        ({"encoder.1.up"}, {"encoder.1.up"}), ("Up", set()), ("p", set()),
        ("encoder.?.up", {"encoder.0.up", "encoder.1.up"}),
    ],
)  # fmt: skip
def test_names_and_lists_as_where(where, names):
    model = Model()
    names = {"encoder.1.up", "encoder.1.gate", "encoder.1.down"} if names is None else names
    for given in (where, nplex.only(where), *([[*where]] if not isinstance(where, str) else [])):
        assert changed(model, where=given) == names
    assert changed(model, **layers([where] if isinstance(where, str) else [*where], None, False)) == names


def test_a_name_that_fits_nothing_is_told():
    for where in (["up", "nope"], nplex.all_but("nope")):
        assert nplex.preview(Model(), 2, where=where).unmatched == ("nope",)
    with pytest.raises(ValueError, match=r"(?s)nothing to convert.*no layer matches: 'nope'"):
        nplex.convert_(Model(), 2, where="nope")


def test_names_in_what_else_takeslayers(unchecked):
    model = Model()
    report = nplex.adapters.add_(model, "2", where="up")
    assert [row.name for row in report.rows if row.changes] == ["encoder.0.up", "encoder.1.up"]
    model = Model()
    nplex.convert_(model, 2)
    found = nplex.factorize_(model, where="encoder.0")
    assert [row.changes for row in found.rows] == [True, True, False, False]
    for call in (nplex.preview, nplex.convert_, nplex.adapters.add_):
        with pytest.raises(TypeError, match="where must be a name"):
            call(Model(), 2, where=3)


def test_reports_fold_equallayers_and_keep_to_80_columns():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 128, batch_first=True), 12)
    long = nn.ModuleDict({"a_module_with_a_rather_long_name_in_it": nn.ModuleDict({"bert": model, "other": Model()})})
    long.requires_grad_(False)
    for given in (model, long):
        for weights in ("fresh", "nearest"):
            report = nplex.preview(given, {"*.layers.3.*": "low-rank:0.5", "*": "8:20"}, weights=weights)
            lines = str(report).splitlines()
            assert max(map(len, lines)) <= 80
            assert len(lines) < len(report.full.splitlines())
            shown = str(report)
            assert all(row.reason in " ".join(shown.split()) for row in report.rows if row.reason)
    assert "12 x  Linear(32, 128)" in (text := str(nplex.preview(model, 4)))
    assert "layers.0-11.linear1" in text
    report = nplex.preview(nn.ModuleList([nn.Linear(16, 16) for _ in range(3)]), {"1": None, "*": 4})
    assert "*      2 x" in str(report)


@pytest.mark.parametrize(
    ("rules", "where"),
    [
        ({"nope": None, "*": 4}, None),
        ({"nope": "dense", "*": 4}, None),
        (4, nplex.all_of(nplex.all_but("nope"), nplex.sensible)),
        (4, nplex.all_of(nplex.all_but("nope"), nplex.all_of(nplex.sensible))),
    ],
)
def test_a_pattern_that_leaves_and_fits_nothing_is_told(rules, where):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    assert nplex.preview(model, rules, where=where).unmatched == ("nope",)
    assert nplex.preview(model, {"0": None, "*": 4}).unmatched == ()


@pytest.mark.parametrize("classes", [7, 16])
def test_neither_kernels_nor_lengths_make_a_head_a_layer(classes):
    body = nn.Sequential(nn.Conv2d(4, 64, 7), nn.Flatten(), nn.Linear(64, 256), nn.Linear(256, classes))
    body.places = nn.Parameter(torch.zeros(1, 16, 64))
    *_, head = nplex.preview(body, 4).rows
    assert not head.changes
    assert "an output head" in head.reason


@pytest.mark.parametrize("answer", [["no"], b"reason", ("no",), {}])
def test_where_answers_yes_no_or_a_reason(answer):
    with pytest.raises(TypeError, match="where must answer True, False or a reason"):
        nplex.preview(nn.Sequential(nn.Linear(64, 64)), 4, where=lambda name, module: answer)


def test_folded_names_say_no_other_layers():
    blocks = [nn.Sequential(*[nn.Linear(64, 64) for _ in range(3)]) for _ in range(2)]
    text = str(nplex.preview(nn.Sequential(*blocks, nn.LayerNorm(64)), 4, where=["0.0", "1.2"]))
    assert "0.0, 1.2" in text
    assert "0.1, 0.2, 1.0, 1.1" in text
    assert "0-1.0-2" in str(nplex.preview(nn.Sequential(*blocks), 4))
