"""Trials as they stand in the storage, and what follows from them: what is taken, what is spent, what is stopped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nplex.lab.tuning.measured import Budget, Goals, Measured
from nplex.lab.tuning.space import DENSE, Candidate, Space

if TYPE_CHECKING:
    from optuna import Study

RULE, SHARED, HISTORY, MEASURED, ERROR = "rule", "shared", "history", "measured", "error"
ANSWERED, INTERRUPTED, WORKER = "answered", "interrupted", "worker"
TICKET, TAKEN = "ticket", "taken"
TRIES = 3
PATIENCE = 2


@dataclass(frozen=True)
class Record:
    """One trial.

    Attributes:
        number: from 0, in the order in which they were begun or asked for.
        state: waiting, running, complete, pruned or fail, as optuna calls it.
        candidate: what was measured; None for a trial that ended before it had one.
        history: score and seconds after each epoch.
        measured: what came out.
        error: what the function raised.
        answered: set where an earlier trial gave the answer, or nothing was measured: it counts for nothing.
        interrupted: whether Ctrl-C ended it.
        worker: host and process.
        ticket: its place among those that choose at the same moment: 0 while it is drawn, None before.
        taken: whether it has chosen, and measures.
    """

    number: int
    state: str
    candidate: Candidate | None
    history: tuple[tuple[float, float], ...]
    measured: Measured | None
    error: str | None
    answered: bool
    interrupted: bool
    worker: str
    ticket: int | None = None
    taken: bool = False

    @property
    def finished(self) -> bool:
        """Whether it says something about its rule: measured, stopped, or refused by an error."""
        return not self.answered and (self.state in ("complete", "pruned") or self.error is not None)

    @property
    def lost(self) -> bool:
        """Whether its process ended before it did."""
        return not self.answered and self.state == "fail" and self.error is None


def records(study: "Study") -> list[Record]:
    """All trials of a study."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        rule, measured = attributes.get(RULE), attributes.get(MEASURED)
        found.append(
            Record(
                number=trial.number,
                state=trial.state.name.lower(),
                candidate=Candidate(rule, attributes.get(SHARED, False)) if rule else None,
                history=tuple((float(score), float(seconds)) for score, seconds in attributes.get(HISTORY, ())),
                measured=Measured(**measured) if measured else None,
                error=attributes.get(ERROR),
                answered=ANSWERED in attributes,
                interrupted=INTERRUPTED in attributes,
                worker=attributes.get(WORKER, ""),
                ticket=attributes.get(TICKET),
                taken=TAKEN in attributes,
            )
        )
    return found


def results(found: Sequence[Record]) -> dict[Candidate, Record]:
    """The first finished trial of each rule."""
    first: dict[Candidate, Record] = {}
    for record in found:
        if record.finished and record.candidate is not None:
            first.setdefault(record.candidate, record)
    return first


def dense_of(found: Sequence[Record]) -> Record | None:
    """The finished trial of dense."""
    return results(found).get(DENSE)


def dense_failed(found: Sequence[Record]) -> str | None:
    """Why there is no yardstick; None while there may be one."""
    dense = dense_of(found)
    if dense is not None and dense.error is not None:
        return dense.error
    return f"its process ended {TRIES} times" if DENSE in given_up(found) else None


def given_up(found: Sequence[Record]) -> set[Candidate]:
    """Rules whose process ended, without a Ctrl-C, as often as is allowed."""
    ends = [r.candidate for r in found if r.lost and not r.interrupted and r.candidate is not None]
    return {candidate for candidate in ends if ends.count(candidate) >= TRIES}


def claimed(found: Sequence[Record]) -> set[Candidate]:
    """Rules that are finished or given up, or run, or are being chosen."""
    running = {r.candidate for r in found if r.state == "running" and not r.answered}
    return {candidate for candidate in running if candidate} | taken(found)


def taken(found: Sequence[Record]) -> set[Candidate]:
    """Rules that are finished or given up, or are measured."""
    running = {r.candidate for r in found if r.state == "running" and r.taken}
    return {candidate for candidate in running if candidate} | results(found).keys() | given_up(found)


def untried(found: Sequence[Record], space: Space) -> list[Candidate]:
    """Rules that nobody has claimed or asked for."""
    waiting = {record.candidate for record in found if record.state == "waiting"}
    busy = claimed(found) | waiting
    return [candidate for candidate in space.points if candidate not in busy]


def is_over(found: Sequence[Record], space: Space, budget: Budget) -> bool:
    """Whether no further trial should be begun."""
    spent = len(claimed(found)) >= budget.trials
    waiting = any(record.state == "waiting" for record in found)
    return spent or (not waiting and not untried(found, space)) or dense_failed(found) is not None


def is_hopeless(
    candidate: Candidate, history: Sequence[tuple[float, float]], found: Sequence[Record], goals: Goals
) -> bool:
    """Whether a finished rule, in no goal behind, had clearly better scores at the last two epochs.

    No larger, where size matters; no slower so far, where speed matters; and a score that was better by more than
    what counts as equal to dense. Twice in a row, so that one unlucky epoch stops nothing.
    """
    dense = dense_of(found)
    if len(history) < PATIENCE or dense is None or dense.measured is None:
        return False
    margin = goals.allowance(dense.measured)
    last = range(len(history) - PATIENCE, len(history))
    for other, record in results(found).items():
        if record.state != "complete" or len(record.history) < len(history):
            continue
        larger = "size" in goals.which and other.nominal_parameters > candidate.nominal_parameters
        slower = "speed" in goals.which and record.history[last[-1]][1] > history[-1][1]
        better = all(goals.gain(record.history[i][0], history[i][0]) > margin for i in last)
        if better and not larger and not slower:
            return True
    return False
