"""One training loop on accelerate: step, evaluate, log, checkpoint, resume.

Launched alone it uses what device there is; under torchrun every process takes its share of each batch.
"""

import os
import time
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nplex.lab.checked import damaged
from nplex.lab.checkpoint import read_training, write_training
from nplex.lab.run_folder import CHECKPOINT
from nplex.lab.train import keep, rules
from nplex.lab.train.interrupt import Interrupted, deferred_interrupt
from nplex.lab.train.log import EVERY, Log
from nplex.lab.train.processes import hosts, join, main_process, wait
from nplex.lab.train.schedule import Schedule, groups
from nplex.lab.train.state import OnStep, State, silent
from nplex.lab.train.task import Loss, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


def fit(
    model: nn.Module,
    task: Task,
    schedule: Schedule,
    *,
    seed: int,
    folder: Path,
    config: dict,
    label: str = "",
    report: OnStep = silent,
) -> State:
    """Trains a model in place; goes on from folder/checkpoint.safetensors where there is one.

    Resumed on a CPU with the same number of threads, a run ends in the same bits as one never stopped.

    Args:
        model: what is trained; at the end it has the weights that `schedule.keep` names.
        task: its examples.
        schedule: how long and how fast.
        seed: of the order of examples; dropout uses torch's own generator, which checkpoints hold.
        folder: for log.jsonl and for the checkpoint, which is written after each epoch and on Ctrl-C.
        config: kept in the checkpoint; one of another config is refused.
        label: what reports call this run.
        report: called after each step with the label, the state and the number of all steps.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, when the checkpoint is written.
        ValueError: the checkpoint is damaged or of another config; fp16 on a CPU; or accelerate is to shard.
    """
    accelerator = _accelerator(schedule)
    loop = _Loop(accelerator, model, task, schedule, seed, folder, config)
    with closing(loop.log), deferred_interrupt() as interrupted:
        while not loop.finished():
            order = task.batches(torch.Generator().manual_seed(1_000_003 * seed + loop.state.epoch))
            steps, stopped = schedule.epochs * len(order), False
            if loop.state.batch >= max(1, len(order)):
                raise damaged(folder / CHECKPOINT, f"batch {loop.state.batch} of a pass that has {len(order)}")
            while loop.state.batch < len(order) and not (stopped := loop.agreed(interrupted())):
                loop.step(order[loop.state.batch], steps)
                if loop.due() and loop.state.batch < len(order):  # after the last one the pass is closed first
                    loop.save()
                report(label, loop.state, steps)
            if loop.state.batch == len(order):
                loop.close_epoch()
                report(label, loop.state, steps)
            loop.save()
            if stopped or loop.agreed(interrupted()):
                raise Interrupted(str(folder / CHECKPOINT))
    wait()
    keep.restore(folder, model, schedule, loop.state)
    return loop.state


class _Loop:
    def __init__(
        self, accelerator: "Accelerator", model: nn.Module, task: Task, schedule: Schedule, seed: int, folder: Path,
        config: dict,
    ) -> None:  # fmt: skip
        self.accelerator, self.bare, self.task, self.schedule = accelerator, model, task, schedule
        self.seed, self.folder, self.config = seed, folder, config
        optimizer = torch.optim.AdamW(groups(model, schedule), lr=0.0, fused=True)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.state = _resume(folder / CHECKPOINT, model, task, schedule, self.optimizer, config, accelerator.scaler)
        if main_process() and self.state.step == 0:
            rules.record(folder, model, 0)
        self.log = Log(folder, self.state)
        device = accelerator.device if accelerator.device.type == "cuda" else "cpu"
        self.loss_sum = torch.tensor(self.state.loss_sum, dtype=torch.float64, device=device)

    def finished(self) -> bool:
        """After all passes, or when the dev score has not been better for long."""
        state, patience = self.state, self.schedule.patience
        stuck = patience > 0 and state.batch == 0 and state.epoch - state.best_epoch >= patience
        return state.epoch >= self.schedule.epochs or stuck

    def step(self, batch: list[int], steps: int) -> None:
        """One update of the weights and of the state; waits for a GPU where the loss is shown."""
        began = time.perf_counter()
        rate = self.schedule.rate(self.state.step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.accelerator.num_processes > 1:  # each process has random numbers of its own, and the same if resumed
            torch.manual_seed((self.seed * 1_000_003 + self.state.step) * 4_099 + self.accelerator.process_index)
        self.model.train()
        self.optimizer.zero_grad()
        total, items, tokens = self._backward(batch)
        self._scale(len(batch) * self.accelerator.num_processes / items)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.schedule.clip)
        self.optimizer.step()
        state = self.state
        state.step, state.batch, state.tokens = state.step + 1, state.batch + 1, state.tokens + tokens
        self.loss_sum, state.items = self.loss_sum + total, state.items + items
        state.seconds += time.perf_counter() - began
        if state.step % EVERY == 0:
            self._settle()
            self.log.step(state, float(total) / items, rate)

    def due(self) -> bool:
        """Whether a checkpoint is due, inside a pass."""
        return self.schedule.checkpoint_every > 0 and self.state.step % self.schedule.checkpoint_every == 0

    def agreed(self, flag: bool) -> bool:
        """Whether any process has the flag: a signal reaches them at different steps, and all must stop at one."""
        if self.accelerator.num_processes == 1:
            return flag
        seen = torch.tensor(float(flag))
        torch.distributed.all_reduce(seen, torch.distributed.ReduceOp.MAX, hosts())
        return bool(seen)

    def _backward(self, batch: list[int]) -> tuple[Tensor, int, int]:
        """Gradients of `sum of losses / len(batch)`, accumulated; gives total, items and tokens of all processes."""
        share = batch[self.accelerator.process_index :: self.accelerator.num_processes]
        steps = [share[i :: self.schedule.accumulate] for i in range(self.schedule.accumulate)]
        steps = [examples for examples in steps if examples] or [[]]
        total, counts = torch.zeros_like(self.loss_sum), torch.zeros(2, dtype=torch.int64)
        for number, examples in enumerate(steps, 1):
            with self.accelerator.autocast():
                loss = self.task.loss(self.model, examples or batch[:1], self.accelerator.device)
            if not examples:  # the batch is smaller than the processes: here it weighs nothing
                loss = Loss(0 * loss.total, 0, 0)
            with nullcontext() if number == len(steps) else self.accelerator.no_sync(self.model):
                self.accelerator.backward(loss.total / len(batch))
            total += loss.total.detach().to(total.device).double()
            counts += torch.tensor([loss.items, loss.tokens])
        if self.accelerator.num_processes > 1:
            torch.distributed.all_reduce(total)
            torch.distributed.all_reduce(counts, group=hosts())
        items, tokens = counts.tolist()
        return total, items, tokens

    def _scale(self, factor: float) -> None:
        """From the mean over a batch's examples to the mean over its items."""
        if factor != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)

    def close_epoch(self) -> None:
        """Scores the model, turns to the next epoch, and stores the weights if they may be kept."""
        state = self.state
        self._settle()
        self.bare.eval()
        scores = self.task.scores(self.bare, self.accelerator.device)
        loss = state.loss_sum / max(state.items, 1)
        state.history.append({"epoch": state.epoch + 1, "loss": loss, **scores})
        state.epoch, state.batch, state.loss_sum, state.items = state.epoch + 1, 0, 0.0, 0
        self.loss_sum.zero_()
        better = keep.improved(state, self.task)
        self.log.epoch(state)
        if main_process():
            keep.store(self.folder, self.bare, self.schedule, state, better=better)
            rules.record(self.folder, self.bare, state.epoch)

    def save(self) -> None:
        """Writes the checkpoint."""
        self._settle()
        if main_process():
            scaler = self.accelerator.scaler
            header = {"config": self.config, "state": asdict(self.state)}
            header |= {"scaler": scaler.state_dict()} if scaler is not None else {}
            write_training(self.folder / CHECKPOINT, self.bare, self.optimizer, header)
            keep.prune(self.folder, self.schedule, self.state)
        wait()

    def _settle(self) -> None:
        """Takes over the loss, when all that a GPU was given to do is done; that time counts."""
        began = time.perf_counter()
        self.state.loss_sum = float(self.loss_sum)
        self.state.seconds += time.perf_counter() - began


def _accelerator(schedule: Schedule) -> "Accelerator":
    """Accelerate's view of this process; its absence is one error that names the command."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ImportError:
        raise ImportError("training needs accelerate, which is not installed: pip install 'nplex[lab]'") from None
    join()
    cpu = not torch.cuda.is_available() and "WORLD_SIZE" in os.environ
    if AcceleratorState._shared_state:  # of an earlier run in this process, perhaps with another precision
        AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=schedule.precision, cpu=cpu)
    if schedule.precision == "fp16" and accelerator.scaler is None:  # accelerate would take float32
        raise ValueError(f"precision fp16 needs a GPU, got {accelerator.device.type}; take bf16 or no")
    return accelerator


def _resume(
    path: Path, model: nn.Module, task: Task, schedule: Schedule, optimizer: torch.optim.Optimizer, config: dict,
    scaler: Any,
) -> State:  # fmt: skip
    """The state of the checkpoint, or of a new run; with fp16 the scaler of gradients goes on too."""
    wait()
    if not path.exists():
        return State()
    header = read_training(path, model, optimizer)
    if header.get("config") != config:
        raise ValueError(
            f"{path} belongs to a run with other settings; take another folder, or --force to start anew"
        )
    try:
        if scaler is not None and "scaler" in header:
            scaler.load_state_dict(header["scaler"])
        state = State.read(header.get("state"), task.main)
        updates = {int(values["step"]) for values in optimizer.state_dict()["state"].values()} or {0}
        if (state.epoch, state.batch) > (schedule.epochs, 0) or (scaler is None and max(updates) != state.step):
            raise ValueError(f"step {state.step} in pass {state.epoch} is not where its optimizer is")
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise damaged(path, error) from None
    return state
