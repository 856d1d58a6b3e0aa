"""Functions that are tuned in tests, in processes of their own too."""

import os
import time
from pathlib import Path

from nplex.lab.tuning import Measured


def size_of(rule):
    n, _, rank = rule.partition(":")
    return (1, 1) if rule == "dense" else (int(n), int(rank or int(n) ** 2))


def known(rule):
    """The score falls with n above 4 and with low rank: at dense's score 4 is the smallest."""
    n, rank = size_of(rule)
    score = 90.0 - max(0, n - 4) - (0.0 if rank >= n * n else 3.0 if rank > n else 5.0)
    return Measured(score, parameters=100_000 // n, seconds=1.0 + 0.001 * rank, low=score - 0.5, high=score + 0.5)


def plain(rule):
    return 1.0 / size_of(rule)[0]


def slow(rule, report):
    """Four epochs; a low rank is worse from the start."""
    n, rank = size_of(rule)
    for epoch in range(4):
        time.sleep(0.02)
        report(10.0 * epoch - (0.0 if rank >= n * n else 5.0), seconds=float(epoch))
    return Measured(30.0 - (0.0 if rank >= n * n else 5.0), parameters=1000 // n, seconds=1.0)


def noted(rule):
    """Writes a line for each call, so that tests can count them."""
    with open(os.environ["NPLEX_TEST_CALLS"], "a") as file:
        file.write(f"{rule} {os.getpid()}\n")
    time.sleep(0.05)
    return known(rule)


def dies_once(rule):
    """The process is killed the first time that it measures 4."""
    path = os.environ["NPLEX_TEST_CALLS"]
    with open(path, "a") as file:
        file.write(f"{rule}\n")
    if rule == "4" and Path(path).read_text("utf-8").split().count("4") == 1:
        os.kill(os.getpid(), 9)
    return known(rule)


def dies_always(rule):
    if rule == "4":
        os.kill(os.getpid(), 9)
    return known(rule)


def waits(rule):
    """Long enough to be interrupted."""
    noted(rule)
    if rule != "dense":
        time.sleep(60)
    return known(rule)


def refuses_five(rule):
    if rule.startswith("5"):
        raise ValueError("width 128 cannot have n = 5")
    return known(rule)


def refuses_all(rule):
    raise ValueError("no data here")


def no_number(rule):
    return "good"


number = 4
