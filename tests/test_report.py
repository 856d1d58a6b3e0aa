import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from nplex.cli import app
from nplex.files import read_json
from nplex.lab import experiment
from nplex.lab.checked import read_sealed, write_sealed
from nplex.lab.recipes.language_modelling import language
from nplex.lab.reporting import rule_tables
from nplex.lab.reporting.read import FinishedRun
from nplex.lab.reporting.rule_tables import LEVELS, MOST_BYTES, packed
from nplex.lab.train import rules
from nplex.nn import LearnedRule, Linear

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of a dense, a fixed and two learned rules, three epochs each."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("report")
    for part in ("train", "dev", "test"):
        (folder / f"{part}.txt").write_text("the cat saw the dog\n" * 40)
    recipe = language("dense")
    schedule = replace(recipe.schedule, epochs=3, batch_size=8)
    recipe = replace(recipe, width=16, feed_forward=32, heads=2, layers=1, length=16, schedule=schedule)
    data = recipe.load(folder)
    experiment.compare(recipe, ["dense", "quaternion", "4", "2:3"], [0, 1], data, folder / "runs")
    return folder / "runs"


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def page(compared, tmp_path_factory):
    pytest.importorskip("plotly")
    place = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule_tables, "MOST", 1)
        patch.setattr(rule_tables, "LARGEST", 2)  # of n = 4 it takes seconds
        done = call("report", compared, "--out", place)
    assert done.exit_code == 0, done.output
    return place


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())[1])


def test_a_page_tells_which_algebras_the_first_layers_found(page):
    four, two = (run["layers"] for run in data_of(page)["rules"])
    assert len(two[0]["identified"]) == 2
    assert all("distance" in verdict or "nearest" in verdict for verdict in two[0]["identified"])
    assert not any("identified" in layer for layer in four + two[1:])


def test_a_page_without_identifying(compared, tmp_path):
    assert call("report", compared, "--out", tmp_path / "page.html", "--no-identify").exit_code == 0
    layers = [layer for run in data_of(tmp_path / "page.html")["rules"] for layer in run["layers"]]
    assert not any("identified" in layer for layer in layers)


def test_rules_are_kept_before_the_first_step_and_after_each_epoch(compared):
    found = rules.read(compared / "4-seed0")
    assert list(found) == [0, 1, 2, 3]
    names = [f"blocks.0.{layer}.rule" for layer in ("attention.query", "attention.key", "up", "down")]
    assert set(names) <= found[0].keys()
    first, last = found[0][names[0]], found[3][names[0]]
    assert first.shape == (4, 4, 4)
    assert not first.equal(last)
    for face in first:  # LearnedRule starts with orthogonal faces
        torch.testing.assert_close(face @ face.T, face[0].square().sum() * torch.eye(4))
    assert [(compared / f"{rule}-seed0" / "rules.safetensors").exists() for rule in ("dense", "quaternion")] == [
        False
    ] * 2


def test_a_rank_is_kept_as_its_table(tmp_path):
    layer = Linear(8, 8, rule=LearnedRule(2, rank=3))
    rules.record(tmp_path, layer, 0)
    left, right, decode = (factor.detach() for factor in layer.rule())
    torch.testing.assert_close(rules.read(tmp_path)[0]["rule"], torch.einsum("kr,jr,ir->kij", left, right, decode))


def test_tables_of_later_epochs_are_dropped_by_a_run_that_comes_again(tmp_path):
    layer = Linear(8, 8, rule=2)
    for epoch in (0, 1, 2):
        rules.record(tmp_path, layer, epoch)
    rules.record(tmp_path, layer, 1)
    assert list(rules.read(tmp_path)) == [0, 1]


def test_the_page_has_all_scores_and_curves(page, compared):
    found, results = data_of(page), read_json(compared / "compare.json")
    assert [line["rule"] for line in found["lines"]] == ["dense", "quaternion", "4", "2:3"]
    assert [line["score"] for line in found["lines"]] == pytest.approx([
        line["scores"]["loss"] for line in results["lines"]
    ])
    assert len(found["curves"]) == 8
    assert [len(curve["history"]) for curve in found["curves"]] == [3] * 8
    text = page.read_text()
    assert "unigram" in text
    assert "{{" not in text.split("<script>")[0]


def test_tables_are_unpacked_as_they_were(page, compared):
    import base64

    (four, two) = data_of(page)["rules"]
    assert (four["run"], two["run"]) == ("n = 4, seed 0", "n = 2, rank 3, seed 0")
    layer = next(layer for layer in four["layers"] if layer["name"] == "blocks.0.up.rule")
    assert (layer["n"], layer["epochs"]) == (4, [0, 1, 2, 3])
    numbers = torch.frombuffer(bytearray(base64.b64decode(layer["numbers"])), dtype=torch.int16)
    wanted = torch.stack([tables["blocks.0.up.rule"] for tables in rules.read(compared / "4-seed0").values()])
    torch.testing.assert_close(
        numbers.view(4, 4, 4, 4) * layer["scale"], wanted, atol=0.51 * float(wanted.abs().max()) / LEVELS, rtol=0
    )


def test_many_tables_are_thinned_to_what_a_page_may_hold():
    tables = {epoch: {f"layers.{i}.rule": torch.randn(8, 8, 8) for i in range(48)} for epoch in range(61)}
    (run,) = packed([FinishedRun({"recipe": {"rule": "8"}, "seed": 0}, [], tables)])
    assert sum(len(layer["numbers"]) for layer in run["layers"]) <= 1.01 * MOST_BYTES
    assert len(run["layers"]) == 48
    assert run["layers"][0]["epochs"][0] == 0
    assert run["layers"][0]["epochs"][-1] == 60
    large = {epoch: {f"layers.{i}.rule": torch.randn(20, 20, 20) for i in range(60)} for epoch in range(4)}
    (run,) = packed([FinishedRun({"recipe": {"rule": "20"}, "seed": 0}, [], large)])
    assert sum(len(layer["numbers"]) for layer in run["layers"]) <= 1.01 * MOST_BYTES
    assert {tuple(layer["epochs"]) for layer in run["layers"]} == {(0, 3)}


def test_a_single_run_has_a_page_in_its_own_folder(compared, tmp_path):
    pytest.importorskip("plotly")
    shutil.copytree(compared / "2-3-seed1", tmp_path / "run")
    assert call("report", tmp_path / "run", "--no-identify").exit_code == 0
    assert [run["run"] for run in data_of(tmp_path / "run" / "report.html")["rules"]] == ["n = 2, rank 3, seed 1"]


def test_what_a_file_says_cannot_leave_its_place(compared, tmp_path):
    pytest.importorskip("plotly")
    shutil.copytree(compared / "4-seed0", tmp_path / "run")
    result = read_sealed(tmp_path / "run" / "result.json")
    result["recipe"]["rule"] = "</script><script>alert(1)</script>"
    write_sealed(tmp_path / "run" / "result.json", result)
    assert call("report", tmp_path / "run", "--no-identify").exit_code == 0
    assert "<script>alert" not in (tmp_path / "run" / "report.html").read_text()


def test_a_folder_without_runs_is_one_line(compared, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    shutil.copy(compared / "4-seed0" / "settings.json", tmp_path / "begun")
    for name, message in {
        "none": "is not a folder; expected the run folder",
        "empty": "is not a folder of nplex run or nplex compare",
        "begun": "holds no finished run",
    }.items():
        done = call("report", tmp_path / name)
        assert (done.exit_code, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert message in line


def test_a_run_that_diverged_has_its_page(compared, tmp_path):
    pytest.importorskip("plotly")
    shutil.copytree(compared / "4-seed0", tmp_path / "run")
    result = read_sealed(tmp_path / "run" / "result.json")
    result["history"][-1]["loss"] = float("nan")
    write_sealed(tmp_path / "run" / "result.json", result)
    assert call("report", tmp_path / "run", "--no-identify").exit_code == 0
    assert data_of(tmp_path / "run" / "report.html")["curves"][0]["history"][-1]["loss"] is None


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [375, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(page, width, scheme):
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        shown, errors, asked = context.new_page(), [], []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        shown.on("request", lambda request: asked.append(request.url))
        shown.goto(Path(page).as_uri())
        shown.wait_for_selector("html[data-ready=yes]")
        look(shown, width)
        browser.close()
    assert errors == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def look(shown, width):
    """The slider moves the table, by the keyboard too; nothing overlaps or is wider than the window."""
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    last = shown.inner_text("#numbers") or shown.text_content("#numbers")
    assert shown.get_attribute("#epoch", "max") == "3"
    shown.focus("#epoch")
    shown.keyboard.press("Home")
    assert shown.inner_text("#epoch-value") == "0"
    assert shown.text_content("#numbers") != last
    assert shown.evaluate(
        "document.getElementById('after').data[0].z.flat().join() === "
        "document.getElementById('before').data[0].z.flat().join()"
    )
    shown.keyboard.press("ArrowRight")
    assert "after epoch 1 the table has moved by" in shown.inner_text("#told")
    shown.select_option("#run", "1")
    assert shown.inner_text("#layer").count("rule") >= 6
    boxes = shown.evaluate(
        "[...document.querySelectorAll('h2, table, .plot, figcaption, .controls, #told, summary')]"
        ".map(e => {const r = e.getBoundingClientRect(); return [r.left, r.top, r.right, r.bottom]})"
    )
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other_left, other_top, other_right, other_bottom in boxes[i + 1 :]:
            apart = (
                right <= other_left + 1
                or other_right <= left + 1
                or bottom <= other_top + 1
                or other_bottom <= top + 1
            )
            assert apart
    assert shown.evaluate("[...document.querySelectorAll('select, input')].every(e => e.labels.length > 0)")
