"""One training loop on accelerate: step, evaluate, log, checkpoint, resume.

Launched alone it uses what device there is; under torchrun every process takes its share of each batch.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nplex.checkpoint import read_training, write_training
from nplex.nn import Rule
from nplex.place import CHECKPOINT

if TYPE_CHECKING:
    from accelerate import Accelerator


@runtime_checkable
class Task(Protocol):
    """What is trained: batches of examples, their loss, and scores."""

    def batches(self, generator: torch.Generator) -> list[list[int]]:
        """The indices of one epoch, in batches."""
        ...

    def loss(self, model: nn.Module, indices: list[int], device: torch.device) -> tuple[Tensor, int]:
        """The mean loss of a batch, and its number of tokens."""
        ...

    def scores(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """What is logged after each epoch."""
        ...


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: AdamW, a linear warm-up, then a cosine down to 0.

    Attributes:
        epochs: passes over the training examples.
        batch_size: examples a step, over all processes.
        learning_rate: the highest.
        warmup: the part of all steps over which the rate grows.
        weight_decay: on weights and components; never on rules, biases, norms and embeddings.
        clip: gradients are scaled down to this norm.
    """

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@dataclass
class State:
    """Where a run stands: all that a checkpoint's header holds."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    tokens: int = 0
    loss_sum: float = 0.0
    history: list[dict] = field(default_factory=list)


Report = Callable[[str, State, int], None]


def silent(label: str, state: State, steps: int) -> None:
    """Reports nothing."""


class Interrupted(Exception):
    """Ctrl-C: the run stopped after a whole step and wrote a checkpoint."""


def fit(
    model: nn.Module,
    task: Task,
    schedule: Schedule,
    *,
    seed: int,
    folder: Path,
    config: dict,
    label: str = "",
    report: Report = silent,
) -> State:
    """Trains a model in place; goes on from folder/checkpoint.safetensors where there is one.

    Resumed on a CPU with the same number of threads, a run ends in the same bits as one never stopped.

    Args:
        model: what is trained.
        task: its examples.
        schedule: how long and how fast.
        seed: of the order of examples; dropout uses torch's own generator, which checkpoints hold.
        folder: for the checkpoint, which is written after each epoch and on Ctrl-C.
        config: kept in the checkpoint; one of another config is refused.
        label: what reports call this run.
        report: called after each step with the label, the state and the number of all steps.

    Raises:
        Interrupted: after Ctrl-C, when the checkpoint is written.
        ValueError: the checkpoint is damaged or belongs to another config.
    """
    accelerator = _accelerator()
    bare, optimizer = model, torch.optim.AdamW(groups(model, schedule.weight_decay), lr=0.0, fused=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = _resume(folder / CHECKPOINT, bare, optimizer, config)

    def save() -> None:
        if accelerator.is_main_process:
            write_training(folder / CHECKPOINT, bare, optimizer, {"config": config, "state": asdict(state)})

    with _deferred_interrupt() as interrupted:
        while state.epoch < schedule.epochs:
            order = task.batches(torch.Generator().manual_seed(1_000_003 * seed + state.epoch))
            model.train()
            while state.batch < len(order) and not interrupted():
                indices = order[state.batch][accelerator.process_index :: accelerator.num_processes]
                _set_rate(optimizer, schedule.rate(state.step, schedule.epochs * len(order)))
                _step(accelerator, model, optimizer, task, indices, schedule.clip, state)
                report(label, state, schedule.epochs * len(order))
            if state.batch == len(order):
                _close_epoch(bare, task, accelerator.device, state)
                report(label, state, schedule.epochs * len(order))
            save()
            if interrupted():
                raise Interrupted(str(folder / CHECKPOINT))
    return state


def _close_epoch(model: nn.Module, task: Task, device: torch.device, state: State) -> None:
    """Scores the model and turns to the next epoch."""
    model.eval()
    loss = state.loss_sum / max(state.batch, 1)
    state.history.append({"epoch": state.epoch + 1, "loss": loss, **task.scores(model, device)})
    state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0


def groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: decay on matrices and components, none on rules, vectors and embeddings."""
    spared = [m for m in model.modules() if isinstance(m, (Rule, nn.Embedding))]
    kept = {p for m in spared for p in m.parameters()} | {p for p in model.parameters() if p.ndim < 2}
    decayed = [p for p in model.parameters() if p not in kept]
    bare = [p for p in model.parameters() if p in kept]
    return [{"params": part, "weight_decay": decay} for part, decay in ((decayed, weight_decay), (bare, 0.0)) if part]


def _accelerator() -> "Accelerator":
    """Accelerate's view of this process; its absence is one error that names the command."""
    try:
        from accelerate import Accelerator
    except ImportError:
        raise ImportError("training needs accelerate, which is not installed: pip install 'nplex[train]'") from None
    return Accelerator()


def _resume(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, config: dict) -> State:
    """The state of the checkpoint, or of a new run."""
    if not path.exists():
        return State()
    header = read_training(path, model, optimizer)
    if header.get("config") != config:
        raise ValueError(
            f"{path} belongs to a run with other settings; take another folder, or --force to start anew"
        )
    return State(**header["state"])


def _step(
    accelerator: "Accelerator", model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, indices: list[int],
    clip: float, state: State,
) -> None:  # fmt: skip
    """One update, noted in the state."""
    began = time.perf_counter()
    loss, tokens = task.loss(model, indices, accelerator.device)
    optimizer.zero_grad()
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    state.step, state.batch = state.step + 1, state.batch + 1
    state.loss_sum, state.tokens = state.loss_sum + loss.item(), state.tokens + tokens
    state.seconds += time.perf_counter() - began


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C only raises a flag, so that a step is whole; a second one stops at once."""
    hits = []

    def note(number: int, frame: object) -> None:
        hits.append(number)
        if len(hits) > 1:
            raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread: leave signals to whoever runs us
        yield lambda: False
        return
    try:
        yield lambda: bool(hits)
    finally:
        signal.signal(signal.SIGINT, previous)
