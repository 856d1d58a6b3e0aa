"""Turns: those who want to choose a rule at the same moment do so one after the other, on whatever machines."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from nplex.lab.tuning.records import TICKET, Record, records
from nplex.lab.tuning.recovery import release_nameless

if TYPE_CHECKING:
    from optuna import Study, Trial

POLL = 0.05
# Seconds between two looks for machines whose heart has stopped.
STALE = 10.0


def wait_for_turn(study: "Study", trial: "Trial", still_wanted: Callable[[], None]) -> None:
    """Returns when nobody who came before is still choosing; later ones wait until this trial is taken or answered.

    Each draws a ticket, one above all that are out, and waits for lower ones, and for those who are drawing. This
    needs of a storage only that what was written is read; trials' own numbers would not do, as those of rules that
    were asked for are older than their beginning.

    Args:
        study: the storage.
        trial: which has not drawn yet.
        still_wanted: called while it waits; may raise.

    Source: Lamport, A new solution of Dijkstra's concurrent programming problem (1974), the bakery algorithm.
    """
    trial.set_user_attr(TICKET, 0)
    ticket = 1 + max(record.ticket or 0 for record in records(study))
    trial.set_user_attr(TICKET, ticket)
    looked = time.monotonic()
    while any(_is_before(record, (ticket, trial.number)) for record in records(study)):
        still_wanted()
        if time.monotonic() - looked > STALE:
            _release_stale(study)
            looked = time.monotonic()
        time.sleep(POLL)


def _is_before(record: Record, mine: tuple[int, int]) -> bool:
    """Whether it is still choosing, with a lower ticket, or none yet."""
    if record.ticket is None or record.state != "running" or record.taken or record.answered:
        return False
    return (record.ticket, record.number) < mine


def _release_stale(study: "Study") -> None:
    """Fails the trials of machines that died meanwhile."""
    import optuna

    release_nameless(study)
    optuna.storages.fail_stale_trials(study)
