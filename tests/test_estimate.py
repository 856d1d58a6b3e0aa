"""nplex.estimate: what rules would give a model, without a change to it."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import nplex
from nplex.cli import app, spread
from nplex.estimating import costs, running


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Each thing is timed four times, for no longer."""
    monkeypatch.setattr(running, "BUDGET", 0.0)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.lstm = nn.Embedding(64, 32), nn.LSTM(32, 32, batch_first=True)
        self.dropout, self.head = nn.Dropout(0.5), nn.Linear(32, 64)

    def forward(self, ids):
        return self.head(self.dropout(self.lstm(self.words(ids))[0]))


IDS = torch.randint(0, 64, (2, 8))
MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.Linear(64, 32)), torch.randn(8, 32)),
    "lstm": (Tagger, IDS),
    "conv": (lambda: nn.Sequential(nn.Conv2d(16, 32, 3, 2), nn.ReLU()), torch.randn(2, 16, 9, 9)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(16, 32, 3), nn.ReLU()), (torch.randn(2, 16, 9),)),
    "attention": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
        {"src": torch.randn(2, 8, 32)},
    ),
    "twice": (lambda: nn.Sequential(layer := nn.Linear(32, 32), nn.ReLU(), layer), torch.randn(8, 32)),
    "bag": (lambda: nn.Sequential(nn.EmbeddingBag(64, 32), nn.Linear(32, 32)), IDS),
}  # fmt: skip


@pytest.mark.parametrize(("name", "everything"), [*((name, False) for name in MODELS), ("lstm", True)])
def test_sizes_are_those_of_the_conversion_and_nothing_changes(name, everything):
    make, example = MODELS[name]
    model = make()
    before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.random.get_rng_state()
    found = nplex.estimate(model, example, [2, "4:7"], everything=everything, measure=name == "linear")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert [row.rule for row in found.rows] == ["dense", "2", "4:7"]
    for row in found.rows[1:]:
        converted = make()
        report = nplex.convert_(converted, row.rule, everything=everything)
        counted = nplex.count(converted)
        assert (row.parameters, row.bytes) == (counted.total, counted.bytes)
        assert [layer.name for layer in row.layers] == [each.name for each in report.rows if each.changes]
        assert min(row.step, row.inference, row.memory, row.flops) > 0
        assert all(layer.method != "not called" for layer in row.layers)
        assert name != "linear" or (row.measured and min(row.measured) > 0)
    assert all(row.rule in str(found) for row in found.rows)
    assert all(layer.name in found.full for row in found.rows for layer in row.layers)
    assert found._repr_html_().count("<tr>") == 4
    assert json.loads(json.dumps(asdict(found)))["rows"][0]["rule"] == "dense"


@pytest.mark.parametrize("name", ["lstm", "attention"])
def test_a_model_on_the_meta_device_stays_there(name):
    make, example = MODELS[name]
    with torch.device("meta"):
        model = make()
    found = nplex.estimate(model, example, [2])
    assert all(p.is_meta for p in model.parameters())
    assert found.rows[1].parameters < found.rows[0].parameters


def test_what_is_predicted_is_the_plan_at_the_speed_that_was_measured():
    model, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), torch.randn(128, 512)
    found = nplex.estimate(model, x, ["4:7"])
    (_, row), layer = found.rows, found.rows[1].layers[0]
    plan = nplex.ops.plan_for(512, 512, tokens=128, n=4, rank=7, training=True)
    best = next(cost for cost in plan.costs if cost.method == plan.method)
    assert layer.method == plan.method == "bilinear"
    assert layer.step[1] / layer.step[0] == pytest.approx(best.seconds / plan.linear.seconds)
    assert row.flops < 0.6 * found.rows[0].flops
    assert row.measured is None


def test_memory_is_what_is_kept(monkeypatch):
    model, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), torch.randn(128, 512)
    for rule in ("4:7",):
        row = nplex.estimate(model, x, [rule], measure=True).rows[1]
        assert row.memory == pytest.approx(row.measured[2], rel=0.15)


def results(*times, names=("dense", "2", "4:7"), method="dense"):
    rows = []
    for i, (name, step) in enumerate(zip(names, times, strict=True)):
        size, both = (1, 1), (0.6, step)
        layer = nplex.estimating.LayerEstimate("a", "Linear(128, 128)", "b", method, 1, size, both, both, 1)
        rows.append(nplex.estimating.RuleEstimate(name, 100 - 20 * i, 400, 10, 900, step, step, (layer,) * (i > 0)))
    return nplex.estimating.Estimate(tuple(rows), 1, "cpu")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (results(1.0, 0.9, 0.5), "take 4:7 for speed: 0.50 of the time of a step with 0.60 of the parameters"),
        (results(1.0, 1.1, 1.2), "1 of 1 layers are computed by their dense weight, as Linear(128, 128)"),
        (results(1.0, 1.1, 1.2, method="bilinear"), "layers as Linear(128, 128) are too small to gain"),
        (results(3.0, 3.0, 3.1), "the layers that change take 20 % of a step. Or take 2 for size (0.80 of the"),
        (results(1.0, names=["dense"]), "stay dense: no layer can be converted"),
    ],
)
def test_recommendations_have_a_reason(found, words):
    assert words in str(found)


def test_the_figure_has_every_rule_and_units():
    pytest.importorskip("matplotlib")
    axes = results(1.0, 0.9, 0.5).figure().axes[0]
    assert {text.get_text().strip() for text in axes.texts} == {"dense", "2", "4:7"}
    assert "ms" in axes.get_ylabel()
    assert "million" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((nn.Linear(8, 8), torch.ones(1, 8)), ValueError, "itself a Linear"),
        ((nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.ones(1, 9)), ValueError, "does not take the example"),
        ((nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8), ["four"]), ValueError, "got 'four'"),
        ((nn.Sequential(nn.Linear(8, 8)), torch.ones(1, 8), [2.5]), TypeError, "rule must be"),
    ],
)
def test_wrong_input_is_named(arguments, error, message, unchecked):
    with pytest.raises(error, match=message):
        nplex.estimate(*arguments)


def test_rules_that_convert_nothing_are_shown_as_dense():
    found = nplex.estimate(nn.Sequential(nn.Linear(16, 3), nn.ReLU()), torch.ones(4, 16), [8])
    assert found.rows[1].parameters == found.rows[0].parameters
    assert found.recommendation == "stay dense: no layer can be converted"


def test_every_kind_of_layer_has_a_cost():
    from nplex.convert.spec import Conversion
    from nplex.convert.twins import TWINS

    made = {"in_features": 16, "out_features": 16, "in1_features": 16, "in2_features": 16, "num_embeddings": 32,
            "embedding_dim": 16, "in_channels": 16, "out_channels": 16, "kernel_size": 3, "input_size": 16,
            "hidden_size": 16, "embed_dim": 16, "num_heads": 2}  # fmt: skip
    import inspect

    for kind in TWINS:
        names = inspect.signature(kind.__init__).parameters.keys() & made.keys()
        names = {"mode"} & names or names
        arguments = {name: made[name] for name in names}
        if issubclass(kind, nn.RNNBase):
            arguments = {"input_size": 16, "hidden_size": 16}
        layer = kind(**arguments)
        for rule in (2, "2:3"):
            (choice,) = Conversion(rule).choices
            for training in (False, True):
                found = costs.change(layer, choice, 64, training=training)
                assert min(found.flops + found.seconds) >= 0
                assert found.method


def nplex_call(*arguments):
    return CliRunner().invoke(app, spread([str(argument) for argument in arguments]), prog_name="nplex")


def test_the_verb_with_a_function(tmp_path, monkeypatch):
    (tmp_path / "my_estimated.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def model():\n    return nn.Sequential(nn.Linear(32, 32), nn.ReLU()), torch.randn(4, 32)\n"
        "def wrong():\n    return 3\n"
        "def fails():\n    return {}[1]\n"
    )
    monkeypatch.chdir(tmp_path)
    done = nplex_call("estimate", "my_estimated:model", "--rule", "2", "4:7", "--json")
    assert done.exit_code == 0, done.output
    assert [row["rule"] for row in json.loads(done.stdout)["rows"]] == ["dense", "2", "4:7"]
    assert "training MB" in nplex_call("estimate", "my_estimated:model", "--rule", "2", "--only", "0").stdout
    if pytest.importorskip("matplotlib"):
        assert nplex_call("estimate", "my_estimated:model", "--figure", "a.png", "--full").exit_code == 0
        assert (tmp_path / "a.png").stat().st_size > 1000
    for arguments, message in (
        (("my_estimated:fails",), "my_estimated:fails failed, KeyError: 1; --debug shows where"),
        (("my_estimated:wrong",), "must return a model and what its forward takes, got a int"),
        (("my_estimated:none",), "names no function, expected my_module:my_function"),
        (("none:none",), "names no function, expected my_module:my_function"),
        (("my_estimated:model", "--rule", "four"), "got 'four'"), (("nowhere",), "no such file or folder"),
        (("my_estimated.py",), "a file holds no forward"),
    ):  # fmt: skip
        done = nplex_call("estimate", *arguments)
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("kind", ["Bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("T5", "ViT"))])
def test_the_verb_with_a_folder(tmp_path, kind):
    hf = pytest.importorskip("transformers")
    sizes = {
        "Bert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        "T5": {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16},
        "ViT": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                "image_size": 32, "patch_size": 8},
    }[kind]  # fmt: skip
    getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**sizes)).save_pretrained(tmp_path / "model")
    done = nplex_call("estimate", tmp_path / "model", "--rule", "2", "--batch", 2, "--length", 8, "--json")
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)["rows"]
    assert second["parameters"] < first["parameters"]
