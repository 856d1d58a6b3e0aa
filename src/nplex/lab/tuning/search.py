"""tune: which rule for a task, found by measuring some; optuna proposes, keeps the trials and retries lost ones."""

import hashlib
import json
import math
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplex.files import write_json, write_text
from nplex.lab.environment import environment
from nplex.lab.experiment import check_settings
from nplex.lab.run_folder import SETTINGS, TUNING, TUNING_DATABASE, Settings, owned
from nplex.lab.scored import DENSE, Measured, measure
from nplex.lab.train import Interrupted
from nplex.lab.tuning.figure import draw
from nplex.lab.tuning.pareto import Goals, Pareto, Row
from nplex.lab.tuning.space import rules_to_try

if TYPE_CHECKING:
    from optuna import Study, Trial

HEARTBEAT, GRACE, TRIES = 10, 60, 3
RULE, MEASURED, ERROR, STOPPED = "rule", "measured", "error", "stopped"
Report = Callable[[Pareto, str], None]


def tune(
    objective: Callable[[str], Any],
    folder: Path,
    *,
    rules: Sequence[str] = (),
    trials: int = 12,
    minutes: float = math.inf,
    goals: Goals = Goals(),  # noqa: B008 - frozen
    storage: str = "",
    report: Report = lambda found, running: None,
) -> Pareto:
    """Measures rules within a budget and gives those that no other beats in size, quality and speed.

    Dense is measured first. If the budget covers all rules, each is measured; otherwise optuna's TPE proposes. What
    the storage holds is not measured again: the same call goes on where an earlier one stopped, and processes with
    one storage share the work. Writes settings.json, tune.json, tune.md, tune.png, and the storage where no other is
    named. Each rule is measured under random numbers of its own; the caller's stay as they were.

    Args:
        objective: called with a rule's text; gives its score, or a Measured.
        folder: for the results of this process.
        rules: what may be tried, dense in any case; by default `rules_to_try()`.
        trials: how many rules are measured in all, failed ones and those of earlier calls counted.
        minutes: no rule is begun after that time.
        goals: what matters; by default size, quality and speed.
        storage: a database URL that several processes share; "" for a file in the folder.
        report: called with the result so far and the rule that is being measured.

    Raises:
        ValueError: dense cannot be measured, the storage cannot be opened, or the folder holds another search.
        KeyboardInterrupt: Ctrl-C; what was measured is kept.
    """
    if trials < 1 or not minutes > 0:
        raise ValueError(f"a budget needs 1 trial or more and minutes above 0, got {trials} and {minutes}")
    rules = list(dict.fromkeys([DENSE, *(rules or rules_to_try())]))
    named = getattr(objective, "recipe", None)
    task = named.task_name if named else f"{objective.__module__}:{objective.__qualname__}"
    settings = {
        "tuned": task, "objective": getattr(objective, "settings", None), "space": rules, "goals": list(goals.which),
        "lower": goals.lower,
    }  # fmt: skip
    check_settings(folder, "tuning", settings)
    empty = Pareto(task, goals, environment(), getattr(objective, "unit", "a call"))
    url = storage or f"sqlite:///{folder.resolve() / TUNING_DATABASE}"
    with owned(folder), _opened(url, settings) as study:
        write_json(folder / SETTINGS, Settings("tuning", settings).json())
        search = _Search(study, objective, rules, folder, empty, report)
        try:
            search.run(trials, time.time() + 60 * minutes)
        finally:
            result = search.result()
            write_json(folder / TUNING[0], result.json())
            write_text(folder / TUNING[1], result.markdown())
            draw(result, folder / TUNING[2])
    if error := result.failed.get(DENSE):
        raise ValueError(f"dense could not be measured: {error}; see {_failure_file(folder, DENSE)}")
    return result


@dataclass
class _Search:
    """One process at work on a study."""

    study: "Study"
    objective: Callable[[str], Any]
    rules: list[str]
    folder: Path
    empty: Pareto
    report: Report
    repeated: bool = False
    number: int = -1  # of the latest trial

    def run(self, trials: int, deadline: float) -> None:
        """Measures until the budget is spent; at the end waits for what other processes measure."""
        import optuna

        while time.time() < deadline:
            self.report(self.result(), "")
            every, begun = self.study.get_trials(deepcopy=False), self._trials()
            taken = {self._rule(trial) for trial in begun}
            rest = [rule for rule in self.rules if rule not in taken]
            if not any(trial.state.name == "WAITING" for trial in every):
                if len(taken) >= trials or not rest or DENSE in self.result().failed:
                    if not any(trial.state.name == "RUNNING" for trial in begun):
                        return
                    time.sleep(0.5)
                    optuna.storages.fail_stale_trials(self.study)
                    continue
                if trials >= len(self.rules) or DENSE in rest or self.repeated:
                    chosen = rest[len(every) % len(rest) if self.repeated else 0]
                    self.study.enqueue_trial({RULE: self.rules.index(chosen)})
            self.repeated = False
            try:
                self.study.optimize(self._trial, n_trials=1, catch=(Exception,))
            except ValueError:  # SQLite may give a waiting trial to two processes: the first to end it counts
                if not self.study.get_trials(deepcopy=False)[self.number].state.is_finished():
                    raise

    def _trial(self, trial: "Trial") -> tuple[float, ...]:
        """What optuna calls; rules are ordered by size, so that TPE learns which sizes are promising."""
        import optuna

        rule, self.number = self.rules[trial.suggest_int(RULE, 0, len(self.rules) - 1)], trial.number
        others = [each for each in self._trials() if self._rule(each) == rule and each.number != trial.number]
        running = any(each.state.name == "RUNNING" and each.number < trial.number for each in others)
        if running or any(each.state.name == "COMPLETE" or ERROR in each.user_attrs for each in others):
            self.repeated = True
            raise optuna.TrialPruned(f"another trial measures {rule}")
        self.report(self.result(), rule)
        try:
            found = measure(self.objective, rule)
        except (KeyboardInterrupt, Interrupted):
            trial.set_user_attr(STOPPED, True)
            raise KeyboardInterrupt from None
        except Exception as error:
            trial.set_user_attr(ERROR, " ".join(f"{type(error).__name__}: {error}".split()))
            write_text(_failure_file(self.folder, rule), traceback.format_exc())
            raise
        trial.set_user_attr(MEASURED, asdict(found))
        return tuple(self.empty.goals.loss(found, goal) for goal in self.empty.goals.which)

    def _rule(self, trial: Any) -> str:
        return self.rules[trial.params[RULE]]

    def _trials(self) -> list[Any]:
        """Those that count: begun, no repetition of another, and not ended by Ctrl-C."""
        begun = [trial for trial in self.study.get_trials(deepcopy=False) if RULE in trial.params]
        return [trial for trial in begun if trial.state.name != "PRUNED" and STOPPED not in trial.user_attrs]

    def result(self) -> Pareto:
        """What the study holds: measured rules, and those that gave an error or whose process ended too often."""
        trials, best = self._trials(), {trial.number for trial in self.study.best_trials}
        rows, failed = {}, {}
        for trial in trials:
            rule, attributes = self._rule(trial), trial.user_attrs
            if trial.state.name == "COMPLETE":
                rows.setdefault(rule, Row(rule, Measured(**attributes[MEASURED]), trial.number in best))
            failed[rule] = attributes.get(ERROR, f"its process ended {TRIES} times")
        for trial in trials:
            if trial.state.name != "FAIL":
                failed.pop(self._rule(trial), None)
        by_size = sorted(rows.values(), key=lambda row: row.measured.parameters or 0)
        return replace(self.empty, rows=tuple(by_size), failed=failed)


def _failure_file(folder: Path, rule: str) -> Path:
    return folder / f"failed-{re.sub(r'[^A-Za-z0-9]+', '-', rule)}.txt"


@contextmanager
def _opened(url: str, settings: dict[str, Any]) -> Iterator["Study"]:
    """The study of these settings, made where there is none; optuna is silent meanwhile."""
    import optuna

    level, digest = optuna.logging.get_verbosity(), hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield optuna.create_study(
                storage=_database(url),
                sampler=optuna.samplers.TPESampler(n_startup_trials=4, seed=0),
                study_name=f"{settings['tuned']} {digest.hexdigest()[:8]}",
                directions=[optuna.study.StudyDirection.MINIMIZE] * len(settings["goals"]),
                load_if_exists=True,
            )
    finally:
        optuna.logging.set_verbosity(level)


def _database(url: str, tries: int = 5) -> Any:
    """A storage whose heartbeats tell of processes that died; optuna tries their rules again."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    retry = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=TRIES - 1)
    options = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        return optuna.storages.RDBStorage(
            url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE, heartbeat_stale_trial_callback=retry
        )
    except (ImportError, SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        if tries and re.search("already exists|unique", str(error), re.IGNORECASE):  # others make its tables
            time.sleep(0.2)
            return _database(url, tries - 1)
        reason = str(error.__cause__ or error).splitlines()[0]
        text = f"{url} cannot be opened, expected a database URL as postgresql://user@host/name: {reason}"
        raise ValueError("the storage " + re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)) from None
