"""tune: which rule for a task, found by measuring some."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nplex.lab import checkpoint
from nplex.lab.environment import environment
from nplex.lab.run_folder import SETTINGS, TUNING, TUNING_DATABASE
from nplex.lab.tuning.figure import picture
from nplex.lab.tuning.front import Front, front_of
from nplex.lab.tuning.interrupts import Interrupts
from nplex.lab.tuning.measured import Budget, Goals, takes
from nplex.lab.tuning.processes import run_processes
from nplex.lab.tuning.records import Record, dense_failed, records
from nplex.lab.tuning.recovery import recover, release, release_ended, worker_name
from nplex.lab.tuning.space import DENSE, Space
from nplex.lab.tuning.storage import Storage
from nplex.lab.tuning.worker import Job, Worker, begin, failure_file


def silent(found: list[Record]) -> None:
    """Reports nothing."""


def tune(
    objective: Callable[..., Any],
    *,
    folder: Path,
    space: Space | None = None,
    budget: Budget | None = None,
    goals: Goals | None = None,
    storage: str = "",
    processes: int = 1,
    report: Callable[[list[Record]], None] = silent,
) -> Front:
    """Measures rules within a budget and gives those that no other beats in size, quality and speed.

    Dense is measured first. What is in the storage already is not measured again, so that the same call goes on
    where an earlier one stopped, and calls on several machines with one storage share the work. Writes
    settings.json, tune.json, tune.md, tune.png, and the storage where no other is named.

    Args:
        objective: called with a rule's text; gives its score, or a Measured. It gets `shared` and `report` by name
            where it takes them; `report(score)` after each epoch lets a rule that cannot win any more be stopped.
        folder: for the results of this machine.
        space: what may be tried; by default n from 2 to 8 at four ranks each.
        budget: when it ends; by default after 12 rules.
        goals: what matters; by default size, quality and speed.
        storage: a database URL that several machines share; "" for a file in the folder.
        processes: how many measure at once. More than one need a function that can be imported by name.
        report: called with all records so far.

    Raises:
        ImportError: optuna is not installed; names the command.
        ValueError: dense cannot be measured, the storage cannot be opened, or the folder holds another search.
        KeyboardInterrupt: Ctrl-C; what was measured is kept.
    """
    space, budget, goals = space or Space(), budget or Budget(), goals or Goals()
    _check(objective, space, processes)
    task = name_of(objective)
    settings = _settings(objective, task, space, goals)
    _note(settings, folder)
    deadline = None if budget.minutes is None else time.time() + 60 * budget.minutes
    kept = Storage.of(storage or f"sqlite:///{folder.resolve() / TUNING_DATABASE}", task, settings)
    job = Job(objective, space, budget, goals, kept, folder, deadline)
    began_in = environment()
    with Interrupts() as stop, kept.opened(space, goals) as opened:
        release_ended(opened)
        begin(opened, space)
        try:
            if processes == 1:
                Worker(job, opened, report, stop).run()
            else:
                run_processes(job, opened, processes, report, stop)
        finally:
            release(opened, worker_name())
            recover(opened, space)
            found = records(opened)
            front = front_of(found, task, goals, getattr(objective, "unit", ""), began_in)
            _write(front, folder)
    _check_dense(found, folder)
    return front


def name_of(objective: Callable[..., Any]) -> str:
    """What a search is called: the objective's own name, or its module and name."""
    own = getattr(objective, "name", None)
    return own or f"{objective.__module__}:{getattr(objective, '__qualname__', type(objective).__qualname__)}"


def _settings(objective: Callable[..., Any], task: str, space: Space, goals: Goals) -> dict:
    """What all who work on a search must agree on; as JSON gives it back."""
    settings = {
        "tuned": task, "objective": getattr(objective, "settings", None), "space": asdict(space),
        "goals": goals.which, "lower": goals.lower,
    }  # fmt: skip
    return json.loads(json.dumps(settings))


def _note(settings: dict, folder: Path) -> None:
    """Writes the settings, or refuses a folder that holds others."""
    path = folder / SETTINGS
    found = checkpoint.read_json(path) if path.exists() else settings
    if found != settings:
        name = next(key for key in settings if found.get(key) != settings[key])
        raise ValueError(
            f"{folder} holds results with other settings ({name} was {found.get(name)!r}, now {settings[name]!r}); "
            f"take another --out"
        )
    checkpoint.write_json(path, settings)


def _check(objective: Callable[..., Any], space: Space, processes: int) -> None:
    """What can be wrong before any work."""
    try:
        import optuna  # noqa: F401, RUF100
    except ImportError:
        raise ImportError("tuning needs optuna, which is not installed: pip install 'nplex[search]'") from None
    if processes < 1:
        raise ValueError(f"processes must be 1 or more, got {processes}")
    if any(space.sharing) and not takes(objective, "shared"):
        raise ValueError("to try shared rules, the function must take an argument `shared`")
    if processes > 1 and "<" in getattr(objective, "__qualname__", ""):
        raise ValueError(
            f"several processes need a function that can be imported by name, got {objective.__qualname__}; "
            f"move it to the top of a module"
        )


def _check_dense(found: list[Record], folder: Path) -> None:
    """Without the yardstick there is no result."""
    reason = dense_failed(found)
    if reason is not None:
        raise ValueError(f"dense could not be measured: {reason}; see {folder / failure_file(DENSE)}")


def _write(front: Front, folder: Path) -> None:
    """Results as data, text and figure."""
    checkpoint.write_json(folder / TUNING[0], front.json())
    checkpoint.write_text(folder / TUNING[1], front.markdown())
    picture(front, folder / TUNING[2])
