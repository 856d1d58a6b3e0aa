"""What studies of many runs share: several processes, and tasks with short epochs."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields, make_dataclass
from multiprocessing import get_context
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from nplex.lab.train import Loss, Task

CONSOLE = Console(stderr=True)
Job = TypeVar("Job")


def all_done(
    done: Callable[[Any, Job], dict], study: Any, jobs: Sequence[Job], processes: int, label: str
) -> Iterator[tuple[Job, dict]]:
    """`done(study, job)` of each job, as they end; one process works in order, here."""
    if processes == 1:
        for job in track(jobs, label, console=CONSOLE):
            yield job, done(study, job)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {pool.submit(done, study, job): job for job in jobs}
        for future in track(as_completed(waiting), label, total=len(jobs), console=CONSOLE):
            yield waiting[future], future.result()


def mixed(first: type, recipe: Any, **values: object) -> Any:
    """A recipe whose class has another before it: a frozen dataclass with the fields of both, so that runs keep all.

    Args:
        first: a frozen dataclass whose methods call the recipe's by super().
        recipe: the recipe, whose values are kept.
        values: of first's fields, or others for the recipe's.
    """
    kind = make_dataclass(f"{first.__name__}{type(recipe).__name__}", [], bases=(first, type(recipe)), frozen=True)
    return kind(**{f.name: getattr(recipe, f.name) for f in fields(recipe)} | values)


@dataclass(frozen=True)
class Short:
    """A task whose epochs end after some batches.

    Attributes:
        inner: the task.
        steps: batches of an epoch; 0 for all.
    """

    inner: Task
    steps: int

    @property
    def main(self) -> str:
        """The inner task's."""
        return self.inner.main

    @property
    def higher(self) -> bool:
        """The inner task's."""
        return self.inner.higher

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """The first of them, which are in random order."""
        return self.inner.batches(generator)[: self.steps or None]

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> Loss:
        """The inner task's."""
        return self.inner.loss(model, indices, device)

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The inner task's."""
        return self.inner.scores(model, device)
