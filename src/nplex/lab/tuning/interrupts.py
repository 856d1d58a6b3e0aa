"""Ctrl-C while a storage is open: heard between its calls, not within one, which would keep its lock."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupts:
    """Within it a Ctrl-C is only noted, except where it may be heard; a second one is heard everywhere.

    Not in the main thread, and where Ctrl-C is ignored, it changes nothing.
    """

    def __init__(self) -> None:
        self._noted = False
        self._heard = False
        self._previous: Any = None

    def __enter__(self) -> "Interrupts":
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            try:
                self._previous = signal.signal(signal.SIGINT, self._note)
            except ValueError:  # not in the main thread
                self._previous = None
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if error is None:
            self.check()

    def check(self) -> None:
        """Raises the Ctrl-C that was noted, once.

        Raises:
            KeyboardInterrupt: there was one.
        """
        if self._noted:
            self._raise()

    @contextmanager
    def heard(self) -> Iterator[None]:
        """In it a Ctrl-C raises at once, as does one that was noted before."""
        before, self._heard = self._heard, True
        try:
            self.check()
            yield
        finally:
            self._heard = before

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """In it, where otherwise it would be heard, a Ctrl-C waits for the end."""
        before, self._heard = self._heard, False
        try:
            yield
        finally:
            self._heard = before
        if before:
            self.check()

    def _note(self, number: int, frame: object) -> None:
        if self._heard or self._noted:
            self._raise()
        self._noted = True

    def _raise(self) -> None:
        self._noted = self._heard = False
        raise KeyboardInterrupt
