"""Rules read from files, printed and drawn."""

import json
import re

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from typer.testing import CliRunner

import nplex
from nplex import algebra
from nplex.algebra import BilinearAlgorithm
from nplex.cli import app
from nplex.cli import rule_showing as showing
from nplex.figures import write_figure
from nplex.files import write_tensors
from nplex.lab.train import rules as trained
from nplex.nn import LearnedRule, Linear
from nplex.stored_rules import stored_rules


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_table_of_an_algebra_has_its_products():
    figure = nplex.show(algebra.quaternion, "table")
    assert texts(figure)[4:8] == ["i", "-1", "k", "-j"]


def test_w_of_an_algebra_has_its_blocks():
    # Hamilton's matrix: the first column of blocks holds the components, the diagonal A0.
    found = texts(nplex.show(algebra.quaternion, "weight"))
    assert found[0::4] == ["A0", "A1", "A2", "A3"]
    assert found[0::5] == ["A0"] * 4
    assert found[1:4] == ["-A1", "-A2", "-A3"]


@pytest.mark.parametrize("rule", [LearnedRule(3), LearnedRule(3, 4), algebra.dual])
def test_all_rules_have_figures(rule, tmp_path):
    for what in ("table", "weight"):
        figure = nplex.show(rule, what)
        assert isinstance(figure, Figure)
        write_figure(figure, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 2000


def test_w_of_a_layer_is_its_weight():
    layer = Linear(10, 7, rule=3)
    (image,) = nplex.show(layer, "weight").axes[0].images
    assert torch.equal(torch.tensor(image.get_array().data), layer.weight.detach().double())


def test_factors_are_drawn_of_an_algorithm_only():
    figure = nplex.show(LearnedRule(4, 7), "factors")
    assert [axes.images[0].get_array().shape for axes in figure.axes[:3]] == [(4, 7)] * 3
    with pytest.raises(TypeError, match="expected the factors"):
        nplex.show(LearnedRule(4), "factors")


def test_show_draws_what_it_is_given():
    layer = Linear(8, 8, rule=LearnedRule(4, 7))
    assert len(nplex.show(layer).axes[0].images) == 1
    assert nplex.show(layer).axes[0].images[0].get_array().shape == (8, 8)
    assert nplex.show(algebra.known_algorithm(algebra.complex_)).axes[0].images[0].get_array().shape == (2, 3)
    assert nplex.show(layer, "factors").axes[0].images[0].get_array().shape == (4, 7)
    assert texts(nplex.show(algebra.dual)) == texts(nplex.show(algebra.dual, "table"))
    with pytest.raises(ValueError, match="what must be table, weight, factors, got 'colours'"):
        nplex.show(layer, "colours")


@pytest.mark.parametrize("wrong", [3, "quaternion", torch.zeros(2, 2), torch.zeros(2, 3, 2)])
def test_what_is_no_rule_is_refused(wrong):
    with pytest.raises(TypeError, match="expected a rule"):
        nplex.show(wrong, "table")


def test_rules_of_a_model(tmp_path):
    model = nn.Sequential(Linear(8, 8, rule=2), Linear(8, 8, rule=LearnedRule(4, 7)), Linear(8, 8, rule=algebra.dual))
    nplex.save(model, tmp_path / "model.safetensors")
    found = stored_rules(tmp_path / "model.safetensors")
    assert list(found) == ["0.rule", "1.rule", "2.rule"]
    assert torch.equal(found["0.rule"], model[0].rule().detach().double())
    assert isinstance(found["1.rule"], BilinearAlgorithm)
    assert torch.equal(algebra.as_table(found["2.rule"]), algebra.dual.table)
    assert stored_rules(tmp_path).keys() == found.keys()


def test_rules_of_a_run_before_and_after(tmp_path):
    model = nn.Sequential(Linear(8, 8, rule=2))
    for epoch in range(3):
        trained.record(tmp_path, model, epoch)
        with torch.no_grad():
            model[0].rule.table.add_(1)
    found = stored_rules(tmp_path / "rules.safetensors")
    assert list(found) == ["0.rule, epoch 0", "0.rule, epoch 2"]
    torch.testing.assert_close(
        found["0.rule, epoch 2"] - found["0.rule, epoch 0"], torch.full((2, 2, 2), 2.0).double()
    )


def test_the_rules_that_were_learned_from_examples(tmp_path):
    assert call("rule", "learn", "complex", "--seed", 3, "--out", tmp_path / "learned")[0] == 0
    found = stored_rules(tmp_path / "learned" / "rule.safetensors")
    first, last = found
    assert first == "seed 3, step 0"
    assert last.startswith("seed 3, step ")
    torch.testing.assert_close(found[last], algebra.complex_.table)
    assert not torch.allclose(found[first], algebra.complex_.table)


def test_identify_prints_the_verdict_of_one_and_a_line_for_each_of_several(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps(algebra.dual.table.tolist()))
    code, out, _ = call("rule", "identify", tmp_path / "own.json")
    assert code == 0
    assert out.startswith("dual (= clifford(0,0,1)")
    code, out, _ = call("rule", "identify", tmp_path / "own.json", "--json")
    assert json.loads(out)["own"]["name"] == "dual"
    nplex.save(
        nn.Sequential(Linear(8, 8, rule=algebra.dual), Linear(8, 8, rule=algebra.complex_)),
        tmp_path / "m.safetensors",
    )
    code, out, _ = call("rule", "identify", tmp_path / "m.safetensors")
    assert code == 0
    assert re.search(r"0\.rule +2 +dual .*1\.rule +2 +complex", out, re.DOTALL)


@pytest.mark.parametrize("whole", [True, False])
def test_a_table_as_json(tmp_path, whole):
    numbers = algebra.dual.table.tolist()
    (tmp_path / "own.json").write_text(json.dumps(numbers if whole else {"table": numbers}))
    assert torch.equal(stored_rules(tmp_path / "own.json")["own"], algebra.dual.table)


WRONG = {
    "missing.json": (None, "no such file"),
    "text.json": ("{", "expected JSON"),
    "object.json": ('{"a": 1}', "expected n x n x n numbers"),
    "flat.json": ("[1, 2]", "table"),
    "nan.json": ("[[[NaN]]]", "finite"),
    "other.safetensors": ("hello", "not a safetensors file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_line(name, tmp_path):
    content, message = WRONG[name]
    if content is not None:
        (tmp_path / name).write_text(content)
    code, out, err = call("rule", "show", str(tmp_path / name))
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_a_file_without_rules_is_refused(tmp_path):
    write_tensors(tmp_path / "plain.safetensors", {"weight": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match="holds no rule"):
        stored_rules(tmp_path / "plain.safetensors")
    write_tensors(tmp_path / "flat.safetensors", {"a.rule.table": torch.zeros(3, 3)})
    with pytest.raises(ValueError, match=r"a\.rule: expected n x n x n"):
        stored_rules(tmp_path / "flat.safetensors")
    write_tensors(tmp_path / "complex.safetensors", {"a.rule.table": torch.zeros(2, 2, 2, dtype=torch.complex64)})
    code, _, err = call("rule", "show", str(tmp_path / "complex.safetensors"))
    assert code == 2
    assert "must be real" in err
    assert len(err.splitlines()) == 1


def test_the_command_prints_tables_and_writes_figures(tmp_path):
    code, out, _ = call("rule", "show", "quaternion", "--figures", str(tmp_path / "pictures"))
    assert code == 0
    assert algebra.quaternion.multiplication_table() in out
    assert {file.name for file in (tmp_path / "pictures").iterdir()} == {"table.png", "weight.png"}


def test_the_command_chooses_among_the_rules_of_a_file(tmp_path):
    nplex.save(nn.Sequential(Linear(8, 8, rule=2), Linear(8, 8, rule=3)), tmp_path / "m.safetensors")
    code, out, _ = call("rule", "show", str(tmp_path / "m.safetensors"), "--only", "1.*")
    assert code == 0
    assert "1.rule: n = 3" in out
    assert "0.rule" not in out
    code, _, err = call("rule", "show", str(tmp_path / "m.safetensors"), "--only", "x")
    assert code == 2
    assert "there are 0.rule, 1.rule" in err


def test_colours_follow_units_and_sizes():
    spans = {span.style for span in showing._products(algebra.quaternion).spans}
    assert len(spans) == 4
    faces = showing._faces([[[1.0, 0.0], [-1.0, 0.5]], [[0.0, 0.0], [0.0, 0.0]]])
    styles = [str(span.style) for span in faces.spans if "on rgb" in str(span.style)]
    assert styles[0] == "white on rgb(225,90,30)"
    assert styles[1] == "white on rgb(0,0,0)"
    assert styles[4] == "white on rgb(40,110,220)"
