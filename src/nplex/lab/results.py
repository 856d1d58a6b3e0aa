"""What result.json holds; what comes back is checked."""

from pathlib import Path

from nplex.lab.checked import (
    AMOUNT,
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    Kind,
    are_numbers,
    damaged,
    is_number,
    read_sealed,
    wrong,
)
from nplex.lab.run_folder import RESULT, SETTINGS, settings_of
from nplex.lab.summary import NAMES

CONFIG: dict[str, Kind] = {"task": TEXT, "recipe": OBJECT, "seed": COUNT, "data": OBJECT}
MEASURED: dict[str, Kind] = {
    "layer_parameters": COUNT,
    "dense_layer_parameters": COUNT,
    "parameters": COUNT,
    "sizes": ("numbers under their names", are_numbers),  # older versions wrote none
    "kind": (f"one of {', '.join(NAMES)}", lambda value: isinstance(value, str) and value in NAMES),
    "scores": ("numbers under their names", are_numbers),
    "interval": ("two numbers", lambda value: isinstance(value, list) and [*map(is_number, value)] == [True, True]),
    "answers": TEXTS,
    "examples": COUNT,
    "notes": OBJECT,
    "training_seconds": AMOUNT,
    "training_tokens_per_second": AMOUNT,
    "testing_tokens_per_second": AMOUNT,
    "history": (
        "a list of numbers under their names",
        lambda value: isinstance(value, list) and all(map(are_numbers, value)),
    ),
    "environment": OBJECT,
}
ENVIRONMENT: dict[str, Kind] = dict.fromkeys(("date", "commit", "torch", "processor"), TEXT) | {"threads": COUNT}
PASS: dict[str, Kind] = {"epoch": COUNT, "loss": NUMBER}


def finished_folders(folder: Path) -> list[Path]:
    """The folders of finished runs: itself, or those below it where it is of a comparison or a search.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it is finished.
        ValueError: it is not a folder of runs.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected the run folder that nplex run wrote")
    settings = settings_of(folder)
    if settings is None or settings.kind == "product":
        raise ValueError(f"{folder} is not a folder of nplex run or nplex compare (no run wrote its {SETTINGS})")
    every = [folder] if settings.kind == "run" else sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
    order = [str(rule).replace(":", "-") for rule in settings.values.get("rules", [])]
    rules = {path: path.name.rpartition("-seed")[0] for path in every}
    every.sort(key=lambda path: ([*order, rules[path]].index(rules[path]), len(path.name)))  # then by the seed
    found = [path for path in every if (path / RESULT).exists()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no finished run; finish it first, by --resume")
    return found


def finished_result(path: Path) -> dict:
    """The result of a run that is done.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged; names the file, and what is wrong.
    """
    result = read_sealed(path)
    if reason := wrong({"sizes": {}} | result, CONFIG | MEASURED) or wrong(result["recipe"], {"rule": TEXT}):
        raise damaged(path, reason)
    answers, examples = result["answers"], result["examples"]
    if result["kind"] == "accuracy":
        answers = [*answers[0]] if len(answers) == 1 and set(answers[0]) <= {"0", "1"} else []
    for reason in (
        wrong(result["environment"], ENVIRONMENT),
        *(
            wrong(passed, PASS | {"epoch": (str(n), [n].__contains__)})
            for n, passed in enumerate(result["history"], 1)
        ),
        "" if next(iter(result["scores"]), "") == result["kind"] else f"the first score is not {result['kind']}",
        "" if len(answers) == examples > 0 else f"it has {len(answers)} answers to {examples} examples",
    ):
        if reason:
            raise damaged(path, reason)
    return result
