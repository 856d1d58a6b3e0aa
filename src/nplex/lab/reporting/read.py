"""What a run folder holds, as a report wants it."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from nplex.files import read_json
from nplex.lab.plot import rule_name
from nplex.lab.run_folder import COMPARISON, LOG, RESULT, SETTINGS, settings_of
from nplex.lab.train import rules as trained

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
    """What needs no model, as a comparison kept it; nothing for a single run."""
    path = folder / COMPARISON[0]
    found = read_json(path).get("baseline") if path.exists() else None
    return (str(found[0]), dict(found[1])) if isinstance(found, list) and len(found) == 2 else ("", {})


def finished_runs(folder: Path) -> list[FinishedRun]:
    """The finished runs of a folder: itself, or those below it in the order of the comparison.

    Raises:
        FileNotFoundError: there is no such folder, or no run in it is finished.
        ValueError: it is not a folder of runs, or a file is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected the run folder that nplex run wrote")
    settings = settings_of(folder)
    if settings is None or settings.kind not in ("run", "comparison"):
        raise ValueError(f"{folder} is not a folder of nplex run or nplex compare (no run wrote its {SETTINGS})")
    folders = [folder] if settings.kind == "run" else sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
    runs = [_one(each) for each in folders if (each / RESULT).exists()]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no finished run; finish it first, by --resume")
    order = list(settings.values.get("rules", []))
    return sorted(runs, key=lambda run: (order.index(run.rule) if run.rule in order else 99, run.result["seed"]))


def _one(folder: Path) -> FinishedRun:
    result = read_json(folder / RESULT)
    missing = [key for key in ("task", "recipe", "seed", "scores", "interval", "history") if key not in result]
    if missing:
        raise ValueError(f"{folder / RESULT} is damaged, {', '.join(missing)} is missing; delete it to run again")
    return FinishedRun(result, _steps(folder / LOG), trained.read(folder))


def _steps(path: Path) -> list[tuple[int, float]]:
    """The loss of single steps, as far as the log has it."""
    found: list[tuple[int, float]] = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "rate" in value:
            found.append((int(value["step"]), float(value["loss"])))
    return found
