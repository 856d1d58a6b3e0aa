"""Training: one loop on accelerate, alone or under torchrun; exact resumption."""

from nplex.train.interrupt import Interrupted
from nplex.train.keep import clear
from nplex.train.loop import fit
from nplex.train.processes import main_process, restarted, wait
from nplex.train.schedule import Schedule, groups
from nplex.train.state import Report, State, silent
from nplex.train.task import Loss, Task

__all__ = [
    "Task", "Loss", "Schedule", "State", "Report", "silent", "Interrupted", "fit", "groups", "clear",
    "main_process", "restarted", "wait",
]  # fmt: skip
