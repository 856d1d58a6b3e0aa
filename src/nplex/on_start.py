"""Ctrl-C while the command line is still loading torch ends it as later: no traceback, code 130.

Looked at before anything else is imported. Where nplex is a library, nothing is changed.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import NoReturn

__all__ = ["end", "ignore"]

STOPPED = 130


def _is_command() -> bool:
    """Whether this process is `nplex ...` or `python -m nplex ...`."""
    if sys.argv[:1] == ["-m"]:
        given = sys.orig_argv
        return given[given.index("-m") + 1 :][:1] == ["nplex"] if "-m" in given else False
    return Path(sys.argv[0] if sys.argv else "").stem in ("nplex", "nplex-script")


def _stop(number: int, frame: object) -> NoReturn:
    """Ends the process at once: an exception would come out of an import as another one, or be swallowed."""
    os.write(2, b"stopped\n")
    os._exit(STOPPED)


def end() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if WATCHED:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore() -> None:
    """The command is over: its code stays, whatever is pressed while Python ends."""
    if WATCHED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


WATCHED = (
    _is_command()  # now: Python puts other arguments there later
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
)
if WATCHED:
    signal.signal(signal.SIGINT, _stop)
