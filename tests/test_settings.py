"""Settings by name and by file, own algebras, own tasks; what comes of them in the folder and on the page."""

import json
import re
import sys
import tomllib
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from refusals import refused
from typer.testing import CliRunner
from used_runs import TINY, call, ok, write_data

import nplex
from nplex.cli import app
from nplex.files import read_json
from nplex.lab.checked import read_sealed
from nplex.lab.recipes.settings import OPTIONS, changed, names, recipe_from, settings_from
from nplex.lab.recipes.tasks import TASKS
from nplex.lab.run_folder import _stranger
from nplex.lab.train import Schedule
from nplex.terminal import EXTRAS

ROOT = Path(__file__).parents[1]
SRC = Path(nplex.__file__).parent
MISSING = re.compile(r"needs? (\w+), which is not installed: pip install 'nplex\[(\w+)\]'")
OWN = "own_code_of_tests"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("settings"))


@pytest.fixture
def here(place, tmp_path, monkeypatch):
    """An empty folder where a command is given, beside the user's own code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(place))
    sys.modules.pop(OWN, None)
    return tmp_path


@pytest.mark.parametrize("task", TASKS)
def test_every_field_of_schedule_and_model_can_be_set_and_read_back(task):
    recipe = TASKS[task]()
    every = {field.name for kind in (type(recipe), Schedule) for field in fields(kind)}
    known = names(type(recipe))
    assert known.keys() == every - {*OPTIONS, "schedule"}
    shown = {name: str(getattr(recipe if hasattr(recipe, name) else recipe.schedule, name)) for name in known}
    assert changed(recipe, shown) == recipe
    found = changed(recipe, {"learning_rate": "2e-3", "rule_rate": "3", "width": "64"})
    assert (found.schedule.learning_rate, found.schedule.rule_rate, found.width) == (2e-3, 3.0, 64)
    assert recipe_from(type(recipe), json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize("verb", ["run", "compare"])
def test_help_names_every_setting(verb):
    done = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "300"})
    every = {name for task in TASKS.values() for name in names(type(task()))}
    assert [name for name in every if not re.search(rf"\b{name}\b", done.stdout)] == []


def test_a_toml_file_gives_settings_and_options_count_more(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('width = 64\nepochs = 3\nkeep = "best"\nlayers = 1\n')
    found = settings_from(file, ["epochs=5", "rule_rate = 2"])
    assert found == {"width": 64, "epochs": "5", "keep": "best", "layers": 1, "rule_rate": "2"}
    recipe = changed(TASKS["agreement"](), found)
    assert (recipe.schedule.epochs, recipe.schedule.keep, recipe.layers) == (5, "best", 1)


BAD_OPTIONS = {
    "unknown": (["--set", "lr=1"], "unknown setting 'lr'; choose from accumulate, average,"),
    "no number": (["--set", "epochs=two"], "epochs must be a whole number from 1, got 'two'"),
    "too small": (["--set", "layers=0"], "layers must be a whole number from 1, got 0"),
    "not finite": (["--set", "learning_rate=nan"], "learning_rate must be a number from 0, got nan"),
    "too large": (["--set", "dropout=2"], "dropout must be a number from 0 to 1, got 2.0"),
    "unknown choice": (["--set", "keep=all"], "keep must be one of last, best, average, got 'all'"),
    "no value": (["--set", "epochs="], "epochs must be a whole number"),
    "heads": (["--set", "heads=3"], "width must be a multiple of heads, got 128 and 3"),
    "an option": (["--set", "rule=4"], "unknown setting 'rule'"),
    "twice": (["--set", "epochs=1", "--set", "epochs=2"], "epochs is given twice"),
    "both ways": (["--set", "epochs=1", "--epochs", "2"], "epochs is given twice"),
    "two sets": (["--set", "a", "--set", "b"], "expected one public set"),
    "no file": (["--settings", "nowhere.toml"], "nowhere.toml"),
    "a folder": (["--settings", "."], "directory"),
    "no TOML": (["--settings", "DIR/own.json"], "is damaged, expected TOML"),
    "unknown in file": (["--settings", "DIR/bad.toml"], "unknown setting 'lr'"),
    "twice in file": (["--settings", "DIR/twice.toml"], "is damaged, expected TOML"),
    "a table": (["--settings", "DIR/table.toml"], "unknown setting 'schedule'"),
    "no rule file": (["--rule", "nowhere.json"], "nowhere.json"),
    "no JSON": (["--rule", "DIR/broken.json"], "is damaged, expected JSON"),
    "empty JSON": (["--rule", "DIR/empty.json"], "expected JSON"),
    "no cube": (["--rule", "DIR/flat.json"], "flat.json"),
    "wide": (["--rule", "DIR/own.json", "--set", "width=1", "--set", "heads=1"], "n = 2 is larger than width = 1"),
}
BAD_TASKS = {
    "no module": (["nowhere:score"], "names no function, expected my_module:my_function"),
    "no function": ([f"{OWN}:nothing"], "has no attribute 'nothing'"),
    "a number": ([f"{OWN}:number"], "must be a function, got a int"),
    "no module name": ([":score"], "names no function"),
    "abstract": ([f"{OWN}:Half", "--data", "DIR"], "cannot be made"),
    "fails": ([f"{OWN}:broken"], "failed with rule 4, RuntimeError: oh no"),
    "options": ([f"{OWN}:score", "--epochs", "2", "--set", "a=1"], "--set, --epochs is for tasks"),
    "size": ([f"{OWN}:Mine", "--size", "paper", "--data", "DIR"], "--size is for the tasks of nplex"),
    "no rule": ([f"{OWN}:score", "--rule", "nothing"], "got 'nothing'"),
}  # fmt: skip


def with_rule(arguments):
    return arguments if "--rule" in arguments else [*arguments, "--rule", "4"]


@pytest.mark.parametrize("verb", ["run", "compare"])
@pytest.mark.parametrize("case", [*BAD_OPTIONS, *BAD_TASKS])
def test_bad_input_is_one_line_and_leaves_no_folder_in_the_way(place, here, unchecked, verb, case):
    (place / "bad.toml").write_text("lr = 1\n")
    (place / "twice.toml").write_text("epochs = 1\nepochs = 1\n")
    (place / "table.toml").write_text("[schedule]\nepochs = 1\n")
    (place / "broken.json").write_text("[[")
    (place / "empty.json").write_text("")
    (place / "flat.json").write_text("[[1, 2], [3, 4]]")
    arguments, message = BAD_OPTIONS.get(case) or BAD_TASKS[case]
    given = [each.replace("DIR", str(place)) for each in with_rule(arguments)]
    if case in BAD_OPTIONS:
        given = ["agreement", "--data", place / "agreement", *given]
    refused(call(verb, *given, "--out", "out"), message)
    assert case == "fails" or not Path("out").exists()


def test_a_function_of_ones_own_is_compared_and_the_table_is_of_all_runs(here):
    ok(call("compare", f"{OWN}:score", "--rule", "dense", "2", "--seed", "0", "1", "--out", "out"))
    before = read_sealed(here / "out" / "2-seed1" / "result.json")
    done = ok(call("compare", f"{OWN}:score", "--rule", "4", "--out", "out", "--resume"))
    shown = [row.split()[0] for row in done.stdout.splitlines() if row.strip()]
    found = read_json(here / "out" / "compare.json")
    assert [line["rule"] for line in found["lines"]] == ["dense", "2", "4"] == shown[-3:]
    assert [len(line["seeds"]) for line in found["lines"]] == [2, 2, 1]
    assert before in found["runs"]
    assert found["lines"][1]["share"] == pytest.approx(524_296 / 1024**2)
    assert "| 4 |" in (here / "out" / "compare.md").read_text()
    assert read_json(here / "out" / "settings.json")["rules"] == ["dense", "2", "4"]
    refused(call("compare", f"{OWN}:measured", "--rule", "8", "--out", "out", "--resume"), "other settings")
    page = ok(call("report", "out")) and (here / "out" / "report.html").read_text()
    assert [line["rule"] for line in data_of(page)["lines"]] == ["dense", "2", "4"]
    refused(call("predict", "out/dense-seed0", "-", stdin="x"), "the score of a function")


def test_a_function_of_ones_own_runs_with_a_seed_and_an_own_algebra(place, here):
    first, second = (
        ok(call("run", f"{OWN}:score", "--rule", place / "own.json", "--seed", seed, "--out", seed))
        for seed in (0, 1)
    )
    assert first.stdout != second.stdout
    done = ok(call("run", f"{OWN}:measured", "--rule", "2"))
    assert "1.500-2.500" in done.stdout
    assert Path(f"runs/{OWN}-measured-2-seed0/result.json").exists()


def test_a_task_of_ones_own_is_trained_and_used(place, here):
    data = ("--data", place / "agreement")
    ok(call("run", f"{OWN}:Mine", "--rule", "2", *data, *TINY, "--set", "more=true", "--epochs", 1, "--out", "out"))
    assert read_json(here / "out" / "settings.json")["task"] == f"{OWN}:Mine"
    refused(call("score", "out", *data), "code that loading does not run", f"--task {OWN}:Mine")
    ok(call("score", "out", *data, "--task", f"{OWN}:Mine"))
    refused(call("score", "out", *data, "--task", f"{OWN}:score"), "must name the class")


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])


def test_a_search_has_its_page(here):
    ok(call("tune", f"{OWN}:measured", "--n", "2", "--rank", "full", "--out", "out"))
    ok(call("report", "out"))
    page = (here / "out" / "report.html").read_text()
    assert {line["rule"] for line in data_of(page)["lines"]} == {"dense", "2"}
    assert "take this" in page
    assert _stranger(Path("out")) is None
    for damage in ("{", "[]", "{}", '{"goals": {"which": 1}}'):
        (here / "out" / "tune.json").write_text(damage)
        refused(call("report", "out"), "tune.json")
    (here / "out" / "tune.json").unlink()
    refused(call("report", "out"), "has no tune.json")


def test_a_page_has_the_settings(place, here):
    ok(
        call(
            "run",
            "agreement",
            "--data",
            place / "agreement",
            *TINY,
            "--set",
            "learning_rate=2e-3",
            "--epochs",
            1,
            "--out",
            "out",
        )
    )
    ok(call("report", "out", "--no-identify"))
    page = (here / "out" / "report.html").read_text()
    assert "learning_rate = 0.002" in page
    assert "64 examples for train" in page


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_where_an_error_comes_from(here, before):
    arguments = ["run", f"{OWN}:broken", "--out", f"out{before}"]
    done = call(*(["--debug", *arguments] if before else [*arguments, "--debug"]))
    assert done.exit_code == 2
    assert 'raise RuntimeError("oh no")' in done.output
    assert "Traceback" not in call(*arguments, "--force").output


def test_shells_complete_verbs_and_options():
    env = {"_NPLEX_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    done = CliRunner().invoke(app, prog_name="nplex", env=env | {"COMP_WORDS": "nplex pre"})
    assert {"predict", "preview"} <= set(done.stdout.split())
    done = CliRunner().invoke(app, prog_name="nplex", env=env | {"COMP_WORDS": "nplex run --set", "COMP_CWORD": "2"})
    assert {"--set", "--settings"} <= set(done.stdout.split())
    done = CliRunner().invoke(app, prog_name="nplex", env=env | {"COMP_WORDS": "nplex run tr", "COMP_CWORD": "2"})
    assert done.stdout.split() == ["translation"]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BROUGHT = {
    extra: {re.match(r"[\w-]+", each)[0] for each in needs}
    for extra, needs in PROJECT["optional-dependencies"].items()
}


@pytest.mark.parametrize("package", EXTRAS)
def test_the_extra_that_brings_a_package_is_named_rightly(package):
    assert package in BROUGHT[EXTRAS[package]]


def test_every_package_of_an_extra_that_nplex_imports_is_in_the_table():
    imported = {
        found
        for path in SRC.rglob("*.py")
        for found in re.findall(r"^\s*(?:import|from) (\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    optional = set().union(*BROUGHT.values()) - {re.match(r"[\w-]+", each)[0] for each in PROJECT["dependencies"]}
    assert imported & optional - EXTRAS.keys() - {"nplex"} == set()


def test_every_message_about_what_is_not_installed_names_an_extra_that_brings_it():
    told = [
        found
        for path in SRC.rglob("*.py")
        for found in re.findall(
            r"needs? (\w+), which is not installed: pip install 'nplex\[(\w+)\]'", path.read_text("utf-8")
        )
    ]
    assert len(told) >= 5
    assert [(package, extra) for package, extra in told if package not in BROUGHT[extra]] == []


@pytest.mark.parametrize(
    ("package", "said"), [("transformers", "nplex[hf]"), ("matplotlib", "nplex[lab]"), ("numpy", "numpy")]
)
def test_a_missing_package_is_told_with_what_brings_it(here, monkeypatch, package, said):
    monkeypatch.setattr(
        nplex.lab.cli.training,
        "own_code",
        lambda text: (_ for _ in ()).throw(ModuleNotFoundError(name=f"{package}.x")),
    )
    refused(call("run", "a:b"), f"this needs {package}, which is not installed: pip install '{said}'")
