"""The storage of a search: a database that several processes and machines write to."""

import hashlib
import json
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nplex.lab.tuning.measured import Goals
from nplex.lab.tuning.recovery import recover
from nplex.lab.tuning.space import Space

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import Engine

HEARTBEAT, GRACE = 10, 60
WAIT_FOR_LOCK = 60
OPENINGS = 5


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

        heart = {"heartbeat_interval": HEARTBEAT, "grace_period": GRACE, "heartbeat_stale_trial_callback": died}
        lock = self.url.startswith("sqlite")
        options = {"connect_args": {"timeout": WAIT_FOR_LOCK}} if lock else {"pool_pre_ping": True}
        try:
            database = _after_others(lambda: optuna.storages.RDBStorage(self.url, engine_kwargs=options, **heart))
        except (ImportError, SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ValueError(
                f"the storage {without_password(self.url)} cannot be opened, expected a database URL as "
                f"sqlite:///tune.db or postgresql://user@host/name: {without_password(reason)}"
            ) from None
        if lock:
            _one_transaction_at_a_time(database.engine)
        return database


def _after_others(open_storage: Callable[[], "RDBStorage"]) -> "RDBStorage":
    """Opens a database again when another process was making its tables at the same moment."""
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError

    for _ in range(OPENINGS):
        try:
            return open_storage()
        except SQLAlchemyError as error:
            if not isinstance(error, IntegrityError) and "already exists" not in str(error):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    return open_storage()


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
