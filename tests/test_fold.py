import copy
import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import nplex
from nplex.algebra import quaternion
from nplex.convert.report import OPTIMIZER
from nplex.convert.twins import TWINS
from nplex.nn import LearnedRule, Linear, LowRankLinear, TransformerEncoder, TransformerEncoderLayer, share


class Tagger(nn.Module):
    """Words, a recurrent layer in two directions, and a class for each word."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 12, padding_idx=0)
        self.net = nn.LSTM(12, 10, 2, batch_first=True, bidirectional=True, proj_size=6)
        self.head = nn.Linear(12, 9)

    def forward(self, words):
        return self.head(self.net(self.words(words))[0])


class Images(nn.Module):
    """Convolutions with groups, one of them used twice, up again, and a cell that runs over rows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3, padding=1, padding_mode="circular")
        self.blocks = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8))})
        self.blocks["b"] = self.blocks["a"]
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.cell = nn.GRUCell(48, 10)

    def forward(self, x):
        y = self.up(self.blocks["b"](self.blocks["a"](self.stem(x))))
        state = None
        for row in y.flatten(-2).mT.flatten(1).split(48, -1):
            state = self.cell(row, state)
        return state


class Translator(nn.Module):
    """Torch's own transformer between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.body = nn.Transformer(16, 4, 2, 1, 20, 0.0, batch_first=True)
        self.head = nn.Linear(16, 30)

    def forward(self, words):
        x = self.words(words)
        return self.head(self.body(x, x[:, :3]))


def words():
    return torch.randint(0, 30, (2, 7))


MODELS = {
    "tagger": (Tagger, words),
    "images": (Images, lambda: torch.randn(2, 6, 8, 8, dtype=torch.float64)),
    "translator": (Translator, words),
}


def everything(name, module):
    return True


@pytest.fixture(params=[(name, rule) for name in MODELS for rule in (2, 3, LearnedRule(2, 2))], ids=str)
def converted(request):
    """A converted model in float64, and its input."""
    name, rule = request.param
    make, inputs = MODELS[name]
    model = make().double()
    nplex.convert_(model, rule, where=everything)
    return model, inputs()


def ours(model):
    return [type(m) for m in model.modules() if type(m).__module__.startswith("nplex.")]


def test_folded_models_compute_the_same_with_torchs_layers(converted):
    model, x = converted
    model.eval()
    before, dense = model(x).detach(), type(model)()
    report = nplex.fold_(model)
    torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-10)
    assert ours(model) == []
    assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in dense.state_dict().items()}
    assert report.after == sum(p.numel() for p in dense.parameters()) > report.before
    assert all(row.now is not None for row in report.rows)
    dense.double().load_state_dict(model.state_dict())
    torch.testing.assert_close(dense.eval()(x), before, rtol=1e-9, atol=1e-10)


def test_folding_twice_is_an_error_and_changes_nothing(converted):
    model, x = converted
    model.eval()
    nplex.fold_(model)
    before, modules = model(x), list(model.modules())
    with pytest.raises(ValueError, match=f"nothing to fold in {type(model).__name__}: it has no layer of nplex"):
        nplex.fold_(model)
    assert torch.equal(model(x), before)
    assert list(model.modules()) == modules


def test_modes_and_what_is_trained_stay(converted):
    model, _ = converted
    for i, (_, module) in enumerate(model.named_children()):
        module.train(i % 2 == 0)
        module.requires_grad_(i % 2 == 1)
    modes = {name: m.training for name, m in model.named_modules()}
    flags = {name: all(p.requires_grad for p in m.parameters()) for name, m in model.named_children()}
    nplex.fold_(model)
    assert all(m.training == modes[name] for name, m in model.named_modules())
    for name, module in model.named_children():
        assert {p.requires_grad for p in module.parameters()} == {flags[name]}


def test_a_bias_and_a_weight_may_differ_in_being_trained():
    model = nn.Sequential(nplex.nn.MultiheadAttention(8, 2, rule=2), nplex.nn.GRU(8, 8, rule=2))
    model[0].in_proj_components.requires_grad_(False)
    model[1].components_hh_l0.requires_grad_(False)
    model[1].bias_ih_l0.requires_grad_(False)
    nplex.fold_(model)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["0.in_proj_weight", "1.weight_hh_l0", "1.bias_ih_l0"]


def test_there_and_back_again():
    model = Translator()
    names = list(model.state_dict())
    for _ in range(2):
        nplex.convert_(model, 4, where=everything)
        nplex.fold_(model)
    assert list(model.state_dict()) == names


def test_every_kind_of_layer_has_a_way_back():
    for torchs, twin in TWINS.items():
        back = {t for t, other in TWINS.items() if other is twin}
        assert torchs in back
        assert hasattr(twin, "to_torch")


def test_a_layer_used_twice_is_folded_once_at_all_its_places():
    model = nn.ModuleDict({"a": Linear(8, 8, rule=2)})
    model["b"] = model["a"]
    report = nplex.fold_(model)
    assert model["a"] is model["b"]
    assert type(model["a"]) is nn.Linear
    assert [(row.name, row.also) for row in report.rows] == [("a", ("b",))]


@pytest.mark.parametrize("reload", [False, True])
def test_shared_rules_that_nothing_uses_any_more_are_removed(reload):
    model = Translator()
    nplex.convert_(model, {"*.self_attn": 4, "*": quaternion}, shared=True)
    model = copy.deepcopy(model) if reload else model
    report = nplex.fold_(model)
    assert report.removed == ("rule", "rule_1")
    assert "removed: rule, rule_1" in str(report)
    assert not any("rule" in name for name, _ in model.named_modules())


def test_shared_rules_that_something_uses_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = share(self, LearnedRule(2), "one"), share(self, LearnedRule(2), "two")
            self.a, self.b = Linear(8, 8, rule=self.one), Linear(8, 8, rule=self.two)
            self.b.register_forward_hook(lambda module, x, y: None)

    model = Net()
    report = nplex.fold_(model)
    assert report.removed == ("one",)
    assert (type(model.a), type(model.b)) == (nn.Linear, Linear)
    assert model.b.rule is model.two
    assert report.rows[1].reason == "has hooks or its own forward, which would be lost"
    assert str(report).splitlines() == [
        "layer  was                   now",
        "a      Linear(8, 8, rule=2)  Linear(8, 8)",
        "b      Linear(8, 8, rule=2)  skipped       has hooks or its own forward, which would be lost",
        "shared rules without a layer, removed: one",
        "1 of 2 layers folded: 96 -> 120 parameters",
        OPTIMIZER,
    ]
    with pytest.raises(ValueError, match=r"(?s)nothing to fold in Net:.*b: has hooks"):
        nplex.fold_(model)


def test_a_part_is_folded_and_leaves_the_rule_of_the_whole():
    model = nn.Module()
    rule = share(model, LearnedRule(2))
    model.part, model.other = nn.Sequential(Linear(8, 8, rule=rule)), Linear(8, 8, rule=rule)
    assert nplex.fold_(model.part).removed == ()
    assert model.rule is rule
    assert nplex.fold_(model).removed == ("rule",)


def test_stacks_of_ours_become_torchs():
    torch.manual_seed(0)
    layer = TransformerEncoderLayer(16, 4, 20, 0.0, batch_first=True, rule=2, dtype=torch.float64)
    model = nn.Sequential(TransformerEncoder(layer, 2, nn.LayerNorm(16, dtype=torch.float64)))
    norm, x = model[0].norm, torch.randn(2, 5, 16, dtype=torch.float64)
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    before = model(x).detach()
    report = nplex.fold_(model)
    assert ours(model) == []
    assert type(model[0]) is nn.TransformerEncoder
    assert model[0].norm is norm
    assert [id(p) for name, p in model.named_parameters() if "norm" in name] == [id(p) for p in norms]
    torch.testing.assert_close(model(x), before)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), before)
    assert report.rows[0].now == "TransformerEncoder(layers=2)"
    assert not any(p.is_meta for p in model.parameters())


def test_layers_without_a_twin_of_their_own_are_folded_too():
    model = nn.Sequential(LowRankLinear(16, 24, rule=2, low_rank=3, dtype=torch.float64))
    x = torch.randn(3, 16, dtype=torch.float64)
    before = model(x).detach()
    nplex.fold_(model)
    torch.testing.assert_close(model(x), before)
    assert type(model[0]) is nn.Linear


class Twice(nn.Module):
    def forward(self, components):
        return 2 * components


class Own(Linear):
    pass


def test_parametrized_layers_are_folded_and_subclasses_stay():
    model = nn.Sequential(Linear(8, 8, rule=2), Own(8, 8, rule=2))
    parametrize.register_parametrization(model[0], "components", Twice())
    x = torch.randn(2, 8)
    before = model(x).detach()
    report = nplex.fold_(model)
    torch.testing.assert_close(model(x), before)
    assert [type(m) for m in model] == [nn.Linear, Own]
    assert report.rows[1].reason == "Own is a subclass of nplex's Linear, which may do more"


def test_on_the_meta_device():
    with torch.device("meta"):
        model = Translator()
    nplex.convert_(model, 4, where=everything)
    nplex.fold_(model)
    assert all(p.is_meta for p in model.parameters())
    assert ours(model) == []


def test_an_error_leaves_the_model_as_it_was(monkeypatch):
    model = Tagger()
    nplex.convert_(model, 2, shared=True, everything=True)
    before = list(model.modules())
    monkeypatch.setattr(Linear, "to_torch", lambda self: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        nplex.fold_(model)
    assert list(model.modules()) == before


def test_components_are_freed():
    model = nn.Sequential(Linear(8, 8, rule=2))
    old = weakref.ref(model[0].components)
    nplex.fold_(model)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(8, 8)),
            ValueError,
            "nothing to fold in Sequential: it has no layer of nplex",
        ),
        (lambda: Linear(8, 8, rule=2), ValueError, r"itself a layer.*use model\.to_torch\(\)"),
        (lambda: TransformerEncoderLayer(8, 2, rule=2), ValueError, r"itself a layer.*use model\.to_torch\(\)"),
        (lambda: nn.DataParallel(Tagger()), ValueError, r"is wrapped \(DataParallel\)"),
        (lambda: [Linear(8, 8, rule=2)], TypeError, r"must be a torch\.nn\.Module, got list"),
    ],
)
def test_what_cannot_be_folded_is_refused(make, error, message, unchecked):
    with pytest.raises(error) as found:
        nplex.fold_(make())
    assert re.search(message, str(found.value))
