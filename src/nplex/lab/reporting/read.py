"""What a run folder holds, as a report wants it."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from nplex.files import read_json
from nplex.lab.checked import are_numbers, damaged, read_sealed
from nplex.lab.plot import rule_name
from nplex.lab.results import finished_folders, finished_result
from nplex.lab.run_folder import COMPARISON, LOG, RESULT, TUNING, settings_of
from nplex.lab.train import log
from nplex.lab.train import rules as trained
from nplex.lab.tuning import Pareto

Tables = dict[int, dict[str, Float[Tensor, "n n n"]]]


@dataclass(frozen=True)
class FinishedRun:
    """One finished run.

    Attributes:
        result: its result.json.
        steps: loss over steps, as (step, loss).
        tables: of each learned rule, by epoch and name.
    """

    result: dict
    steps: list[tuple[int, float]]
    tables: Tables

    @property
    def rule(self) -> str:
        """As on the command line."""
        return self.result["recipe"]["rule"]

    @property
    def label(self) -> str:
        """For people."""
        return f"{rule_name(self.rule)}, seed {self.result['seed']}"


def baseline(folder: Path) -> tuple[str, dict[str, float]]:
    """What needs no model, as a comparison kept it; nothing for a single run.

    Raises:
        ValueError: compare.json is damaged.
    """
    path = folder / COMPARISON[0]
    found = read_sealed(path).get("baseline") if path.exists() else None
    if found is None:
        return "", {}
    match found:
        case [str(name), scores] if are_numbers(scores):
            return name, scores
    raise damaged(path, f"baseline is {found!r:.40}, expected a name and its scores")


def search_of(folder: Path) -> Pareto | None:
    """The result of the search that a folder is of; None where it is of something else.

    Raises:
        FileNotFoundError: the search has no result yet.
        ValueError: tune.json is damaged.
    """
    settings = settings_of(folder)
    if settings is None or settings.kind != "tuning":
        return None
    path = folder / TUNING[0]
    try:
        found = Pareto.read(read_json(path))
        found.markdown()  # it must be possible to print it
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} has no {path.name}; finish the search first, by --resume") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from None
    return found


def finished_runs(folder: Path) -> list[FinishedRun]:
    """The finished runs of a folder: itself, or those below it in the order of the comparison.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it is finished.
        ValueError: it is not a folder of runs, or a file is damaged.
    """
    runs = [_one(each) for each in finished_folders(folder)]
    _same_task(runs, folder)
    _none_lost(runs, folder / COMPARISON[0])
    return runs


def _one(folder: Path) -> FinishedRun:
    steps = [(line["step"], float(line["loss"])) for line in log.lines(folder / LOG) if "rate" in line]
    return FinishedRun(finished_result(folder / RESULT), steps, trained.read(folder))


def _same_task(runs: list[FinishedRun], folder: Path) -> None:
    """Refuses runs that no table can hold together."""
    first, seen = runs[0].result, set()
    for run in runs:
        same = all(run.result[key] == first[key] for key in ("task", "kind", "examples"))
        if not same or [*run.result["scores"]] != [*first["scores"]]:
            raise ValueError(f"{folder} holds runs of different tasks or data ({run.label}); move one of them away")
        if run.label in seen:
            raise ValueError(f"{folder} holds two runs of {run.label}; move one of them away")
        seen.add(run.label)


def _none_lost(runs: list[FinishedRun], path: Path) -> None:
    """Refuses a comparison that has lost runs since it was finished."""
    there = {(run.rule, run.result["seed"]) for run in runs}
    try:
        summed = [(run["recipe"]["rule"], run["seed"]) for run in read_sealed(path)["runs"]] if path.exists() else []
        lost = [f"{rule}, seed {seed}" for rule, seed in summed if (rule, seed) not in there]
    except (KeyError, TypeError):
        raise damaged(path, "it has no runs with their rules and seeds") from None
    if lost:
        raise FileNotFoundError(f"{path.parent} has lost the run of {lost[0]}; bring it back, by --resume")
