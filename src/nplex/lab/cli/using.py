"""The verbs that use what was trained: score, predict."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nplex.terminal import messages, own_code, print_table, refusing

if TYPE_CHECKING:
    from nplex.lab.loading import LoadedRun
    from nplex.lab.recipes.recipe import Outcome, Prediction

RUN = "A folder that nplex run wrote"
CHUNK = 256  # lines whose answers are printed together
Runs = Annotated[list[Path], typer.Argument(help=f"{RUN}, or nplex compare: all its runs.", metavar="RUN...")]
Run = Annotated[Path, typer.Argument(help=f"{RUN}.", metavar="RUN")]
Lines = Annotated[Path, typer.Argument(help="A text a line, plain or .gz; - for stdin.", metavar="FILE")]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="A folder with a test part; the built-in set if left out."),
]
SetOption = Annotated[
    str | None,
    typer.Option("--set", metavar="NAME", help="Of the data: a public set, '' for own files; the run's if left out."),
]
TaskOption = Annotated[
    str, typer.Option("--task", metavar="CLASS", help="The code of a run's own task, as my_module:MyRecipe.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def score(
    runs: Runs, data: DataOption = None, set_name: SetOption = None, task: TaskOption = "", as_json: AsJson = False
) -> None:
    """Score finished runs on other data, by the measure of their task, with its 95 % interval.

    Only the test part is read. Of several runs each has a line, with its difference to the first one by the paired
    bootstrap.

    Examples:
      nplex score runs/agreement-4-seed0 --data my/data

      nplex score runs/inference-compare --data data/scitail --set ''

      nplex score runs/first runs/second --data my/data --json
    """
    with refusing():
        from nplex.lab.experiment import fingerprint
        from nplex.lab.results import finished_folders
        from nplex.lab.summary import DIGITS, NAMES

        folders = dict.fromkeys(found for run in runs for found in finished_folders(run))
        loaded = {folder: _loaded(folder, task) for folder in folders}
        if len(names := {run.task.name for run in loaded.values()}) > 1:
            raise ValueError(f"expected runs of one task, got {', '.join(sorted(names))}")
        read = {folder: run.read(data, set_name) for folder, run in loaded.items()}
        outcomes = {}
        for folder, run in loaded.items():
            with messages.status(f"scoring {folder}"):
                outcomes[folder] = run.task.test(run.model, read[folder], next(run.model.parameters()).device)
        (first, *_) = read.values()
        rows = _rows(loaded, outcomes, first.references)
    if as_json:
        print(json.dumps({"data": fingerprint(first), "runs": rows}, indent=1))
        return
    kind = rows[0]["kind"]
    digits, (_, *others) = DIGITS[kind], rows[0]["scores"]
    head = ["run", "rule", NAMES[kind], "95 % interval", *others, "examples", *["to the first"] * (len(rows) > 1)]
    table = [head]
    for row in rows:
        first, *rest = row["scores"].values()
        low, high = (f"{end:.{digits - 1}f}" for end in row["interval"])
        cells = [f"{first:.{digits}f}", f"{low}-{high}", *(f"{value:.{digits - 1}f}" for value in rest)]
        table.append([row["run"], row["rule"], *cells, f"{row['examples']:,}", *[row["shown"]] * (len(rows) > 1)])
    print_table(table)


def predict(run: Run, file: Lines, as_json: AsJson = False, task: TaskOption = "") -> None:
    """Print what a finished run makes of each line of a file: one line in, one line out.

    agreement reads the words before a verb, inference a premise TAB a hypothesis: the label TAB its probability.
    translation and style write the line anew. language goes on with it until the line ends; of a long one its end is
    read. --json prints an object a line, with the probabilities of all labels.

    Examples:
      nplex predict runs/agreement-4-seed0 sentences.txt

      echo 'the keys to the cabinet' | nplex predict runs/agreement-4-seed0 -

      nplex predict runs/translation-4-seed0 news.de.gz --json
    """
    from rich.progress import track

    with refusing():
        from nplex.lab.text import read_lines

        loaded, name = _loaded(run, task), "stdin" if str(file) == "-" else str(file)
        lines = read_lines(file)
        if not lines:
            raise ValueError(f"{name} is empty, expected {' TAB '.join(loaded.task.inputs)} on each line")
        try:
            cells = loaded.task.cells(lines)
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None
        began, device = time.perf_counter(), next(loaded.model.parameters()).device
        chunks = range(0, len(lines), CHUNK)
        for first in track(chunks, "lines", console=messages, transient=True, disable=not messages.is_terminal):
            part = slice(first, first + CHUNK)
            answers = loaded.task.predict(loaded.model, cells[part], loaded.tokenizer, device)
            for line, answer in zip(lines[part], answers, strict=True):
                shown = json.dumps({"input": line} | answer, ensure_ascii=False) if as_json else _shown(answer)
                print(shown, flush=True)
    messages.print(f"{len(lines):,} lines in {time.perf_counter() - began:.1f} s")


def _loaded(folder: Path, task: str) -> "LoadedRun":
    """The run on the device that there is."""
    import torch

    from nplex.lab.loading import load_run
    from nplex.lab.recipes.recipe import Recipe

    recipe = own_code(task) if task else None
    if recipe is not None and not (isinstance(recipe, type) and issubclass(recipe, Recipe)):
        raise ValueError(f"--task must name the class of a run's own task, a Recipe; got {task}")
    loaded = load_run(folder, recipe)
    loaded.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return loaded


def _rows(runs: dict[Path, "LoadedRun"], outcomes: dict[Path, "Outcome"], references: Any) -> list[dict[str, Any]]:
    """What is told of each run: scores, interval, and the difference to the first."""
    from nplex.lab.scores import paired, score_of, statistics

    base, *_ = outcomes.values()
    rows = []
    for folder, outcome in outcomes.items():
        if [*outcome.scores] != [*base.scores]:
            raise ValueError(f"expected runs of one measure, got {', '.join(outcome.scores)} of {folder}")
        difference = None
        if outcome is not base and outcome.examples == base.examples:
            ours, theirs = (statistics(each.kind, [each.answers], references) for each in (outcome, base))
            difference = paired(ours, theirs, score_of(outcome.kind))
        rows.append({
            "run": str(folder), "rule": runs[folder].task.rule, "kind": outcome.kind, "scores": outcome.scores,
            "interval": outcome.interval, "examples": outcome.examples, "notes": outcome.notes,
            "difference": difference and asdict(difference), "shown": str(difference or ""),
        })  # fmt: skip
    return rows


def _shown(answer: "Prediction") -> str:
    """A label and its probability, or the text, on one line."""
    if "label" in answer:
        return f"{answer['label']}\t{answer['probabilities'][answer['label']]:.4f}"
    return " ".join(answer["text"].splitlines())
