"""The storage of a search: a database that several processes and machines write to."""

import hashlib
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nplex.tune.measured import Goals
from nplex.tune.records import RULE, SHARED, WORKER, given_up, records, results
from nplex.tune.space import Candidate, Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import Engine

HEARTBEAT, GRACE = 10, 60
WAIT_FOR_LOCK = 60


@dataclass(frozen=True)
class Storage:
    """Where trials are kept.

    Attributes:
        url: of a database, as SQLAlchemy reads it.
        study: the name of the search in it.
    """

    url: str
    study: str

    @classmethod
    def of(cls, url: str, task: str, settings: dict[str, Any]) -> "Storage":
        """A search named by its task and its settings, so that only those with the same settings share it."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return cls(url, f"{task} {digest[:8]}")

    @contextmanager
    def opened(self, space: Space, goals: Goals, seed: int = 0) -> Iterator["Study"]:
        """The study, made where there is none; optuna is silent meanwhile.

        Raises:
            ValueError: the database cannot be opened.
        """
        import optuna

        level = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.CRITICAL)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                database = self._database(space)
                study = optuna.create_study(
                    storage=database, study_name=self.study, directions=goals.directions, load_if_exists=True
                )
                study.sampler = optuna.samplers.TPESampler(
                    n_startup_trials=len(space.start), seed=seed + len(study.get_trials(deepcopy=False))
                )
                try:
                    yield study
                finally:
                    database.remove_session()
                    database.engine.dispose()
        finally:
            optuna.logging.set_verbosity(level)

    def _database(self, space: Space) -> "RDBStorage":
        """Heartbeats tell of workers that died elsewhere; their rules are tried again."""
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        def died(study: "Study", trial: "FrozenTrial") -> None:
            recover(study, space)

        lock = {"connect_args": {"timeout": WAIT_FOR_LOCK}} if self.url.startswith("sqlite") else {}
        try:
            database = optuna.storages.RDBStorage(
                self.url, engine_kwargs=lock, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
                heartbeat_stale_trial_callback=died,
            )  # fmt: skip
        except (ImportError, SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(
                f"the storage {without_password(self.url)} cannot be opened, expected a database URL as "
                f"sqlite:///tune.db or postgresql://user@host/name: {without_password(reason)}"
            ) from None
        if lock:
            _one_transaction_at_a_time(database.engine)
        return database


def _one_transaction_at_a_time(engine: "Engine") -> None:
    """A transaction locks SQLite from its first read on.

    SQLite has no SELECT ... FOR UPDATE, with which other databases keep two workers from starting the same waiting
    trial: both would read that it waits before either writes that it runs.

    Source: SQLAlchemy, SQLite dialect, transactions with SQLite and the sqlite3 driver.
    """
    from sqlalchemy import event

    def leave_transactions_to_us(connection: Any, record: Any) -> None:
        connection.isolation_level = None

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "connect", leave_transactions_to_us)
    event.listen(engine, "begin", begin)
    engine.dispose()  # connections of before would not know


def without_password(text: str) -> str:
    """A URL as it may be shown."""
    return re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", text)


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
