"""One worker: takes a rule, measures it, writes what came out into the storage, until the search is over."""

import os
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nplex.lab import checkpoint
from nplex.lab.train import Interrupted
from nplex.lab.tuning import records as recorded
from nplex.lab.tuning.interrupts import Interrupts
from nplex.lab.tuning.measured import Budget, Goals, Measured, Pruned, call
from nplex.lab.tuning.records import Record, is_hopeless, is_over, records, results, taken, untried
from nplex.lab.tuning.recovery import ask_for, recover, release_nameless, worker_name
from nplex.lab.tuning.space import Candidate, Space
from nplex.lab.tuning.storage import Storage
from nplex.lab.tuning.turns import wait_for_turn

if TYPE_CHECKING:
    from optuna import Study, Trial

Tell = Callable[[list[Record]], None]


class Failed(Exception):
    """The function raised an error, which is noted, or others took the trial for dead; the search goes on."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; it travels to other processes.

    Attributes:
        objective: called with a rule.
        space: what may be tried.
        budget: when it ends.
        goals: what matters.
        storage: where trials are kept.
        folder: for what is written about failures.
        deadline: no rule is begun after it, in seconds since the epoch.
    """

    objective: Callable[..., Any]
    space: Space
    budget: Budget
    goals: Goals
    storage: Storage
    folder: Path
    deadline: float | None = None


@dataclass(frozen=True)
class Worker:
    """One process at work on a job.

    Attributes:
        job: the work.
        study: the open storage.
        tell: called with all records after each epoch and each rule.
        stop: the Ctrl-C that it listens to.
        parent: the process that started this one and without which it stops; 0 for none.
        lost: trials that others ended meanwhile.
    """

    job: Job
    study: "Study"
    tell: Tell
    stop: Interrupts = field(default_factory=Interrupts)
    parent: int = 0
    lost: list[int] = field(default_factory=list)

    def run(self) -> None:
        """Measures rules until the search is over.

        Raises:
            KeyboardInterrupt: Ctrl-C; what was measured is kept, and the running rule will be asked for again.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        while not self._over():
            lost = len(self.lost)
            try:
                self.study.optimize(self._trial, n_trials=1, catch=(Failed,))
            except UpdateFinishedTrialError:
                continue  # others ended it as it was about to be told
            except ValueError:
                if len(self.lost) == lost:
                    raise

    def _over(self) -> bool:
        self._still_wanted()
        job, found = self.job, records(self.study)
        self.tell(found)
        late = job.deadline is not None and time.time() >= job.deadline
        return late or is_over(found, job.space, job.budget)

    def _trial(self, trial: "Trial") -> tuple[float, ...]:
        """What optuna calls.

        A Ctrl-C is no failure of the rule. A process that was asleep for longer than its heart may be still finds
        that others have ended its trial and asked for the rule again.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return self._values(trial)
        except KeyboardInterrupt:
            trial.set_user_attr(recorded.INTERRUPTED, True)
            raise
        except UpdateFinishedTrialError:
            self.lost.append(trial.number)
            raise Failed(f"trial {trial.number} was ended by others") from None

    def _values(self, trial: "Trial") -> tuple[float, ...]:
        """The values of a rule, measured or known from an earlier trial."""
        from optuna import TrialPruned

        trial.set_user_attr(recorded.WORKER, worker_name())
        candidate = self.job.space.suggest(trial)
        trial.set_user_attr(recorded.RULE, candidate.rule)
        trial.set_user_attr(recorded.SHARED, candidate.shared)
        wait_for_turn(self.study, trial, self._still_wanted)
        found = [record for record in records(self.study) if record.number != trial.number]
        before = taken(found)
        if candidate in before or len(before) >= self.job.budget.trials:
            trial.set_user_attr(recorded.ANSWERED, True)
            self._ask_for_another(candidate, found)
            known = results(found).get(candidate)
            if known is None or known.measured is None:
                raise TrialPruned
            return self.job.goals.values(known.measured)
        trial.set_user_attr(recorded.TAKEN, True)
        return self._measure(trial, candidate)

    def _ask_for_another(self, candidate: Candidate, found: list[Record]) -> None:
        """After a rule that is known, one that is not, by chance: the sampler would suggest the same again."""
        if any(record.state == "waiting" for record in found):
            return
        rest = [other for other in untried(found, self.job.space) if other != candidate]
        if rest:
            ask_for(self.study, self.job.space, random.Random(len(found)).choice(rest))

    def _measure(self, trial: "Trial", candidate: Candidate) -> tuple[float, ...]:
        from optuna import TrialPruned
        from optuna.exceptions import UpdateFinishedTrialError

        history: list[tuple[float, float]] = []
        began = time.perf_counter()

        def report(score: float, seconds: float | None = None) -> None:
            spent = time.perf_counter() - began if seconds is None else seconds
            history.append((float(score), spent))
            with self.stop.unheard():
                self._report(trial, candidate, history)

        self.tell(records(self.study))
        try:
            with self.stop.heard():
                measured = call(self.job.objective, candidate, report)
        except Pruned:
            raise TrialPruned from None
        except Interrupted:
            raise KeyboardInterrupt from None
        except UpdateFinishedTrialError:
            raise
        except Exception as error:
            self._note_failure(trial, candidate, error)
            raise Failed(candidate.key) from None
        measured = complete(measured, candidate, time.perf_counter() - began)
        trial.set_user_attr(recorded.MEASURED, asdict(measured))
        return self.job.goals.values(measured)

    def _report(self, trial: "Trial", candidate: Candidate, history: list[tuple[float, float]]) -> None:
        """Writes the scores so far, and stops a rule that cannot win."""
        trial.set_user_attr(recorded.HISTORY, history)
        found = records(self.study)
        self.tell(found)
        self._still_wanted()
        others = [record for record in found if record.number != trial.number]
        if self.job.budget.prune and is_hopeless(candidate, history, others, self.job.goals):
            raise Pruned(candidate.key)

    def _note_failure(self, trial: "Trial", candidate: Candidate, error: Exception) -> None:
        """A line for the table, and the traceback for whoever mends it."""
        trial.set_user_attr(recorded.ERROR, " ".join(f"{type(error).__name__}: {error}".split()))
        checkpoint.write_text(self.job.folder / failure_file(candidate), traceback.format_exc())

    def _still_wanted(self) -> None:
        """Ctrl-C is heard here; a worker whose parent was killed goes too."""
        self.stop.check()
        if self.parent and os.getppid() != self.parent:
            raise KeyboardInterrupt


def complete(measured: Measured, candidate: Candidate, seconds: float) -> Measured:
    """What a function left out: nominal parameters, and the time that the call took."""
    if measured.parameters is None:
        measured = replace(measured, parameters=candidate.nominal_parameters)
    return measured if measured.seconds is not None else replace(measured, seconds=seconds)


def failure_file(candidate: Candidate) -> str:
    """Where the traceback of a rule is."""
    name = candidate.key.replace(":", "-").replace(" ", "-").replace("/", "-")
    return f"failed-{name}.txt"


def begin(study: "Study", space: Space) -> None:
    """What is measured first, and again what a killed process left."""
    if not study.get_trials(deepcopy=False):
        for candidate in space.start:
            ask_for(study, space, candidate)
    release_nameless(study)
    recover(study, space)
