"""The runs of one part of a table, and the files that hold them."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from nplex.files import read_json, write_json, write_text
from nplex.lab import experiment, plot
from nplex.lab.recipes.recipe import Data
from nplex.lab.recipes.tables import Part, Provenance
from nplex.lab.reproduction.figure import picture
from nplex.lab.reproduction.page import Reproduced
from nplex.lab.run_folder import COMPARISON
from nplex.lab.scores import Difference, paired, score_of, statistics
from nplex.lab.train import OnStep, main_process, silent

DENSE = "dense"


def reproduce(part: Part, data: Data, *, size: str, runs: Path, report: OnStep = silent) -> Reproduced:
    """Runs what is missing of a part, below `runs`, and sets all beside the paper's numbers.

    Args:
        part: which; with dense among its rules differences to it are told.
        data: what the part's recipe has loaded.
        size: small or paper.
        runs: the folder of this part's runs; those that are done are read.
        report: called after each step.

    Raises:
        ValueError: a folder holds a run with other settings.
        Interrupted: Ctrl-C; what is done stays done.
    """
    summary = experiment.compare(part.recipe(part.rules[0], size), part.rules, part.seeds, data, runs, report)
    results = read_json(runs / COMPARISON[0])["runs"]
    rules, seeds = tuple(line.rule for line in summary.lines), tuple(sorted({run["seed"] for run in results}))
    found = differences(results, rules, data.references)
    files = experiment.fingerprint(data)
    del files["name"]
    read = Provenance(experiment.sizes(data), files)
    return Reproduced(replace(part, rules=rules, seeds=seeds), size, summary, found, results, read)


def differences(results: Sequence[dict], rules: Sequence[str], references: Sequence[str]) -> dict[str, Difference]:
    """Of each rule to dense, on the same test examples, if dense is there."""
    if DENSE not in rules:
        return {}
    kind = results[0]["kind"]
    answers = {rule: [r["answers"] for r in results if r["recipe"]["rule"] == rule] for rule in rules}
    found = {rule: statistics(kind, texts, references) for rule, texts in answers.items()}
    return {rule: paired(found[rule], found[DENSE], score_of(kind)) for rule in rules if rule != DENSE}


def write(done: Reproduced, folder: Path) -> Path:
    """NAME.json with all runs, NAME.md and NAME.png; gives the path of the page."""
    stem = folder / done.name
    if main_process():
        values = asdict(done.summary) | {
            "command": done.command, "paper": asdict(done.part.table), "read": done.read._asdict(),
            "differs": done.part.differs(done.size, done.read),
            "differences": {rule: asdict(value) for rule, value in done.differences.items()}, "runs": done.results,
        }  # fmt: skip
        write_json(stem.with_suffix(".json"), values)
        write_text(stem.with_suffix(".md"), done.markdown())
        if done.differences:
            picture(done, stem.with_suffix(".png"))
        else:
            plot.comparison(done.summary, stem.with_suffix(".png"))
    return stem.with_suffix(".md")
