"""The weights that a run ends with: the last, the best, or the mean of the last few."""

from pathlib import Path

import torch
from torch import Tensor, nn

from nplex.files import tensors_of
from nplex.lab.checked import damaged
from nplex.lab.checkpoint import fill_from, read_sealed_tensors, write_sealed_tensors
from nplex.lab.run_folder import BEST, CHECKPOINT, EPOCH
from nplex.lab.train.schedule import Schedule
from nplex.lab.train.state import State
from nplex.lab.train.task import Task


def improved(state: State, task: Task) -> bool:
    """Whether the newest dev score is the best so far; the state remembers the best."""
    score = state.history[-1][task.main]
    better = state.best is None or (score > state.best if task.higher else score < state.best)
    if better:
        state.best, state.best_epoch = score, state.epoch
    return better


def store(folder: Path, model: nn.Module, schedule: Schedule, state: State, *, better: bool) -> None:
    """Writes the weights after a pass, where they may be among those kept: before the checkpoint, which names it."""
    if schedule.keep == "best" and better:
        write_sealed_tensors(folder / BEST, tensors_of(model)[0])
    elif schedule.keep == "average":
        write_sealed_tensors(folder / EPOCH.format(state.epoch), tensors_of(model)[0])


def prune(folder: Path, schedule: Schedule, state: State) -> None:
    """Deletes the weights that are no longer among the last ones, when the checkpoint is written."""
    for epoch in range(1, state.epoch - schedule.average + 1):
        (folder / EPOCH.format(epoch)).unlink(missing_ok=True)


def restore(folder: Path, model: nn.Module, schedule: Schedule, state: State) -> None:
    """Puts the kept weights into the model.

    Raises:
        ValueError: a file of weights is missing, damaged or of another model; names it.
    """
    if schedule.keep == "last":
        return
    first = max(1, state.epoch - schedule.average + 1)
    names = [BEST] if schedule.keep == "best" else [EPOCH.format(epoch) for epoch in range(first, state.epoch + 1)]
    found = []
    path = folder / CHECKPOINT
    for path in (folder / name for name in names):
        if not path.exists():
            raise damaged(folder / CHECKPOINT, f"{path.name} beside it is missing")
        found.append(read_sealed_tensors(path)[0])
        fill_from(path, model, found[-1])
    if len(found) > 1:
        fill_from(path, model, mean(found))


def clear(folder: Path) -> None:
    """Deletes what `store` wrote."""
    for path in (folder / BEST, *folder.glob(EPOCH.format("*"))):
        path.unlink(missing_ok=True)


def mean(weights: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """`sum_e w_e / E` of each tensor; what is not a fraction is the last one's.

    Source: Vaswani et al., Attention is all you need (2017), section 6.1: the last checkpoints averaged.
    """
    return {
        name: torch.stack([each[name].double() for each in weights]).mean(0).to(last.dtype)
        if last.is_floating_point()
        else last
        for name, last in weights[-1].items()
    }
