"""Several workers on one machine: started, watched, replaced when they die, stopped together."""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

import torch

from nplex.lab.tuning.interrupts import Interrupts
from nplex.lab.tuning.records import is_over, records
from nplex.lab.tuning.recovery import recover, release
from nplex.lab.tuning.worker import Job, Tell, Worker

if TYPE_CHECKING:
    from optuna import Study

POLL = 0.3
STOP_WITHIN = 60
INTERRUPTED = 130


def run_processes(job: Job, study: "Study", count: int, tell: Tell, stop: Interrupts) -> None:
    """Works on a job with several processes until it is over.

    Raises:
        KeyboardInterrupt: Ctrl-C; all are stopped.
        ValueError: processes end before they begin.
    """
    team = Team(job, study, count, [], stop)
    try:
        with _blocked():
            for _ in range(count):
                team.start()
        while team.members:
            with stop.heard():
                time.sleep(POLL)
            team.replace_ended()
            tell(records(study))
    except BaseException:
        team.stop()
        raise
    finally:
        recover(study, job.space)


@dataclass
class Team:
    """The processes of a job.

    Attributes:
        job: their work.
        study: the open storage.
        count: how many there should be.
        members: those that live.
        interrupts: the Ctrl-C that it listens to.
        stillborn: how many ended without a trial.
    """

    job: Job
    study: "Study"
    count: int
    members: list[BaseProcess]
    interrupts: Interrupts
    stillborn: int = 0

    def start(self) -> None:
        """Starts one more."""
        made = multiprocessing.get_context("spawn").Process(
            target=work, args=(self.job, len(self.members), self.count, os.getpid()), daemon=False
        )
        made.start()
        self.members.append(made)

    def replace_ended(self) -> None:
        """Asks again for what dead processes were measuring, and starts others in their place."""
        for member in [member for member in self.members if member.exitcode is not None]:
            self.members.remove(member)
            if member.exitcode == 0:
                continue
            if member.exitcode == INTERRUPTED:
                raise KeyboardInterrupt
            self._bury(member)
            late = self.job.deadline is not None and time.time() >= self.job.deadline
            if not late and not is_over(records(self.study), self.job.space, self.job.budget):
                with _blocked():
                    self.start()

    def _bury(self, member: BaseProcess) -> None:
        worker = f"{socket.gethostname()}:{member.pid}"
        self.stillborn += not any(record.worker == worker for record in records(self.study))
        release(self.study, worker)
        recover(self.study, self.job.space)
        if self.stillborn > self.count:
            raise ValueError(
                f"{self.stillborn} processes ended (code {member.exitcode}) before they measured anything; "
                f"run it with --processes 1 to see why"
            )

    def stop(self) -> None:
        """Ctrl-C for all; a second one kills them."""
        for member in self.members:
            if member.pid is not None and member.exitcode is None:
                with contextlib.suppress(OSError):
                    os.kill(member.pid, signal.SIGINT)
        try:
            until = time.monotonic() + STOP_WITHIN
            for member in self.members:
                with self.interrupts.heard():
                    member.join(max(0.0, until - time.monotonic()))
        finally:
            for member in self.members:
                if member.exitcode is None:
                    member.kill()
                    member.join()
            for member in self.members:
                release(self.study, f"{socket.gethostname()}:{member.pid}")


def work(job: Job, index: int, count: int, parent: int) -> None:
    """What a process does; it has a session of its own, so that a terminal's Ctrl-C reaches only the parent."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupts() as stop:
            _block(False)
            torch.set_num_threads(max(1, torch.get_num_threads() // count))
            with job.storage.opened(job.space, job.goals, seed=parent + index) as study:
                Worker(job, study, lambda found: None, stop, parent).run()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)


@contextmanager
def _blocked() -> Iterator[None]:
    """Ctrl-C waits while processes start; they inherit that, until they have a session of their own.

    What multiprocessing starts beside the first one lets it come again: that is started before.
    """
    if os.name != "nt":
        resource_tracker.ensure_running()
    _block(True)
    try:
        yield
    finally:
        _block(False)


def _block(yes: bool) -> None:
    """Keeps a Ctrl-C back, or lets it come; of this thread."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK if yes else signal.SIG_UNBLOCK, {signal.SIGINT})
