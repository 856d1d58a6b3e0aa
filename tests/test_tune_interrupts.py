"""Ctrl-C during a search: heard between calls of the storage, at any moment of a worker's life."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nplex.lab.tuning.interrupts import Interrupts

TESTS = Path(__file__).parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")


@pytest.fixture(autouse=True)
def handler():
    """Python's own, though a suite in the background ignores the signal; and it is there again at the end."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def press(then=lambda: None):
    signal.raise_signal(signal.SIGINT)
    then()


def test_it_is_noted_and_raised_once_at_the_next_check():
    with Interrupts() as stop:
        press()
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        stop.check()


def test_it_is_raised_at_once_where_it_may_be_heard():
    with Interrupts() as stop:
        with pytest.raises(KeyboardInterrupt), stop.heard():
            press(lambda: pytest.fail("it was not heard"))
        press()
        with pytest.raises(KeyboardInterrupt), stop.heard():
            pytest.fail("what was noted is not raised")


def test_it_waits_for_the_end_of_what_is_unheard():
    done = []

    def write(stop):
        with stop.unheard():
            press(lambda: done.append("whole"))
        done.append("too far")

    with Interrupts() as stop, pytest.raises(KeyboardInterrupt), stop.heard():
        write(stop)
    assert done == ["whole"]


def test_a_second_one_is_heard_everywhere():
    with Interrupts():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_one_that_was_noted_last_is_raised_at_the_end():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        press()


def test_an_error_is_not_hidden_by_one_that_was_noted():
    with pytest.raises(ZeroDivisionError), Interrupts():
        press(lambda: 1 / 0)


def test_who_ignores_it_goes_on_ignoring_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts() as stop, stop.heard():
        signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, signal.default_int_handler) == signal.SIG_IGN


def test_in_another_thread_it_changes_nothing():
    seen = []

    def use():
        with Interrupts() as stop, stop.heard(), stop.unheard():
            stop.check()
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_control_c_while_workers_start_stops_them(tmp_path):
    """They cannot hear it yet; without being told again, they would begin a rule that takes a minute."""
    command = [
        sys.executable, "-m", "nplex", "tune", "tune_cases:waits", "--n", "2", "4", "--rank", "full", "--processes",
        "2", "--out", tmp_path / "out",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=TESTS, env=os.environ | {"NPLEX_TEST_CALLS": str(tmp_path / "calls"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 300
        while len(workers_of(process.pid)) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        started = workers_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
    calls = (tmp_path / "calls").read_text().split() if (tmp_path / "calls").exists() else []
    assert len(calls) <= 2 * 2  # one rule each at most, if they were quicker than the signal


def workers_of(pid):
    """Processes that multiprocessing has begun for another."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []
