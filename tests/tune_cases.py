"""Functions that are tuned in tests, in processes of their own too."""

import os
import time

import torch

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


def drawn(rule):
    """As first values of a model would: from torch's generator."""
    return torch.rand(()).item()


def noted(rule):
    """Writes a line for each call, so that tests can count them."""
    with open(os.environ["NPLEX_TEST_CALLS"], "a") as file:
        file.write(f"{rule} {os.getpid()}\n")
    time.sleep(0.05)
    return known(rule)


def waits(rule):
    """Long enough to be interrupted."""
    noted(rule)
    if rule != "dense" and "NPLEX_TEST_GO_ON" not in os.environ:
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
