"""Trials whose process has ended before them: given back, and their rules asked for again."""

import os
import socket
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from nplex.lab.tuning.records import RULE, SHARED, WORKER, given_up, records, results
from nplex.lab.tuning.space import Candidate, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

# After so long a trial that no worker has put its name to belongs to none.
NAMELESS = timedelta(seconds=10)


def worker_name() -> str:
    """Host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def ask_for(study: "Study", space: Space, candidate: Candidate) -> None:
    """Puts a rule in front of what the sampler would try."""
    attributes = {RULE: candidate.rule, SHARED: candidate.shared}
    study.enqueue_trial(space.points[candidate], attributes)


def release(study: "Study", worker: str) -> None:
    """Fails the running trials of a worker that has ended."""
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        if trial.user_attrs.get(WORKER) == worker:
            _fail(study, trial)


def release_nameless(study: "Study") -> None:
    """Fails trials without a worker: its process was killed after it began them and before it wrote its name.

    Times are of whoever began them: on machines that disagree about the hour it takes so much longer.
    """
    import optuna

    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        began = trial.datetime_start
        if WORKER not in trial.user_attrs and began is not None and datetime.now() - began > NAMELESS:
            _fail(study, trial)


def _fail(study: "Study", trial: "FrozenTrial") -> None:
    """Ends a trial, unless another ends it at this moment."""
    import optuna

    with suppress(optuna.exceptions.UpdateFinishedTrialError):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)


def release_ended(study: "Study") -> None:
    """Fails the running trials of this machine whose process is no more: somebody killed all of it."""
    host = f"{socket.gethostname()}:"
    for record in records(study):
        if record.state == "running" and record.worker.startswith(host):
            process = int(record.worker.removeprefix(host))
            if process != os.getpid() and not _lives(process):
                release(study, record.worker)


def recover(study: "Study", space: Space) -> None:
    """Asks again for rules whose process ended before they did, up to the allowed number of tries."""
    found = records(study)
    asked = {record.candidate for record in found if record.state in ("waiting", "running")}
    kept = asked | results(found).keys() | given_up(found)
    lost = dict.fromkeys(r.candidate for r in found if r.lost and r.candidate and r.candidate not in kept)
    for candidate in lost:
        if candidate in space.points:
            ask_for(study, space, candidate)


def _lives(process: int) -> bool:
    """Whether there is a process of that number."""
    if os.name == "nt":
        return True  # the heartbeat tells
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
