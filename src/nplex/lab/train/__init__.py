"""Training: one loop on accelerate, alone or under torchrun; exact resumption."""

from nplex.lab.train.interrupt import Interrupted
from nplex.lab.train.keep import clear
from nplex.lab.train.loop import fit
from nplex.lab.train.processes import join, main_process, restarted, spread, wait
from nplex.lab.train.schedule import Schedule, groups
from nplex.lab.train.state import OnStep, State, silent
from nplex.lab.train.task import Loss, Task

__all__ = [
    "Task", "Loss", "Schedule", "State", "OnStep", "silent", "Interrupted", "fit", "groups", "clear",
    "join", "main_process", "restarted", "spread", "wait",
]  # fmt: skip
