"""Ctrl-C and its like end a run after a whole step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the run stopped after a whole step and wrote a checkpoint."""


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """A signal only raises a flag, so that a step is whole; a second one stops at once."""
    hits = []

    def on_signal(number: int, frame: object) -> None:
        hits.append(number)
        if len(hits) > 1:
            raise KeyboardInterrupt

    try:
        previous = {number: signal.signal(number, on_signal) for number in SIGNALS}
    except ValueError:  # not in the main thread: leave signals to whoever runs us
        yield lambda: False
        return
    try:
        yield lambda: bool(hits)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
