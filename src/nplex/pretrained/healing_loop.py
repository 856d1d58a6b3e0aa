"""The loop of healing: phases of steps, measured before and after, that go on where they were stopped."""

import json
import math
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nplex.files import read_tensors, write_tensors
from nplex.optim import param_groups
from nplex.pretrained.blocks import tensors_of
from nplex.pretrained.distillation import relative_error
from nplex.pretrained.healing_report import Healing, HealingReport, HealingRow
from nplex.pretrained.pair import Pair

FILE = "healing.safetensors"
_MODEL, _OPTIMIZER = "model.", "optimizer."
_STATE = ("step", "seconds", "before", "start", "idle")


class Phase(NamedTuple):
    """A part of healing.

    Attributes:
        name: of it, as the report says it.
        steps: of it.
        rate: the highest learning rate.
        losses: of a batch by its number; each has its backward pass before the next is made.
        parts: parameters whose gradients are clipped together.
    """

    name: str
    steps: int
    rate: float
    losses: Callable[[int], Iterator[Tensor]]
    parts: list[list[nn.Parameter]]


class Run:
    """One healing: its phases, and where it stands."""

    def __init__(
        self,
        pair: Pair,
        trained: dict[str, nn.Parameter],
        settings: Healing,
        folder: str | Path | None,
        accelerator: Any,
    ) -> None:
        self.pair, self.trained, self.settings, self.accelerator = pair, trained, settings, accelerator
        self.path = None if folder is None else Path(folder) / FILE
        self.measuring = len(pair.batches) - pair.trained_on
        parts = [pair.parameters(first, last) for first, last in pair.groups]
        every = [
            Phase("groups", settings.group_steps, settings.group_rate, pair.group_losses, parts),
            Phase("whole model", settings.steps, settings.rate, pair.whole_losses, [[*trained.values()]]),
        ]
        self.phases = [phase for phase in every if phase.steps and phase.parts]
        self.rows: list[HealingRow] = []
        self.step, self.seconds, self.before = 0, 0.0, 0.0
        self.start: list[float] = []
        self.idle: list[str] = []
        self.optimizer = self._new_optimizer()

    def report(self) -> HealingReport:
        """Runs what is left of all phases."""
        from rich.console import Console
        from rich.progress import Progress

        if self.path is None or not self.path.exists():
            self.start = self._measured(self._apart)
        else:
            self._resume(self.path)
        console = Console(stderr=True)
        fading = self.pair.fading() if self.settings.fade else nullcontext()
        with fading, Progress(console=console, disable=not console.is_terminal) as bar:
            for phase in self.phases[len(self.rows) :]:
                task = bar.add_task(phase.name, total=phase.steps, completed=self.step)
                self._run(phase, lambda task=task: bar.advance(task))
        *hidden, outputs = self._measured(self._apart)
        blocks = zip(self.pair.order, self.start, hidden, strict=False)
        count = sum(parameter.numel() for parameter in self.trained.values())
        return HealingReport(
            tuple(self.rows), tuple(blocks), (self.start[-1], outputs), count, self.measuring, tuple(self.idle)
        )

    def _run(self, phase: Phase, advance: Callable[[], object]) -> None:
        """The steps of a phase that are left."""
        if self.step == 0:
            self.optimizer, self.seconds = self._new_optimizer(), 0.0
            self.before = fmean(self._measured(phase.losses))
        while self.step < phase.steps:
            began = time.perf_counter()
            self._update(phase)
            self.step += 1
            self.seconds += time.perf_counter() - began
            advance()
            if self.step % self.settings.checkpoint_every == 0 and self.step < phase.steps:
                self._write()
        self.idle = [name for name, p in self.trained.items() if p.grad is None and p.ndim > 1]
        after = fmean(self._measured(phase.losses))
        self.rows.append(HealingRow(phase.name, phase.steps, phase.rate, self.before, after, self.seconds))
        self.step = 0
        self._write()

    def _update(self, phase: Phase) -> None:
        """One step of the weights."""
        number = sum(row.steps for row in self.rows) + self.step
        torch.manual_seed(1_000_003 * self.settings.seed + number)
        if self.settings.fade and not self.rows:
            self.pair.alpha = min(1.0, self.step / (self.settings.fade * phase.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = group["factor"] * phase.rate * 0.5 * (1 + math.cos(math.pi * self.step / phase.steps))
        self.optimizer.zero_grad()
        index = self._batch(number)
        losses = phase.losses(index)
        while (loss := self._next(losses, phase, index)) is not None:
            loss.backward() if self.accelerator is None else self.accelerator.backward(loss)
        if self.accelerator is not None:
            self.accelerator.unscale_gradients(self.optimizer)
        for part in phase.parts:
            nn.utils.clip_grad_norm_(part, self.settings.clip)
        self.optimizer.step()
        self.pair.alpha = 1.0

    def _next(self, losses: Iterator[Tensor], phase: Phase, index: int) -> Tensor | None:
        """The next loss of a batch, checked; None after the last."""
        with nullcontext() if self.accelerator is None else self.accelerator.autocast():
            loss = next(losses, None)
        if loss is not None and not loss.isfinite().all():
            where = f"step {self.step} of the phase {phase.name!r}, batch {index}"
            raise ValueError(f"the loss is {loss.tolist()} at {where}; look at that batch, or take a lower rate")
        return loss

    def _batch(self, number: int) -> int:
        """The number of the batch of a step: all that are trained on in a random order, then all in another."""
        count = self.pair.trained_on
        epoch, position = divmod(number, count)
        generator = torch.Generator().manual_seed(1_000_003 * self.settings.seed + epoch)
        return int(torch.randperm(count, generator=generator)[position])

    @torch.no_grad()
    def _measured(self, losses: Callable[[int], Iterator[Tensor]]) -> list[float]:
        """Means of losses over the batches that are held out, or the first one."""
        sums, count = [], len(self.pair.batches)
        measured = range(self.pair.trained_on, count) if self.measuring else range(1)
        for index in measured:
            torch.manual_seed(self.settings.seed)
            with nullcontext() if self.accelerator is None else self.accelerator.autocast():
                sums.append(torch.stack([loss.detach().double().cpu() for loss in losses(index)]))
        found = torch.stack(sums).mean(0)
        if not found.isfinite().all():
            raise ValueError(
                f"the model's loss is {found.tolist()} on batches {measured.start} to {measured.stop - 1}; fix its "
                f"numbers first"
            )
        return found.tolist()

    def _apart(self, index: int) -> Iterator[Tensor]:
        """The error of each call of a block for a batch, and the loss of outputs."""
        errors, outputs = self.pair.errors(index)
        yield from (*errors, outputs)

    def _new_optimizer(self) -> Any:
        """AdamW without decay; each group has `factor`, by which the rate of a step is multiplied."""
        groups = param_groups(self.pair.student, lr=1.0)
        for group in groups:
            group["factor"] = group.pop("lr")
        optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)
        return optimizer if self.accelerator is None else self.accelerator.prepare(optimizer)

    def _write(self) -> None:
        """The checkpoint: weights, optimizer, and where the run stands; one file."""
        if self.path is None:
            return
        tensors = {_MODEL + name: parameter for name, parameter in self.trained.items()}
        for index, values in self.optimizer.state_dict()["state"].items() if self.step else ():
            tensors |= {f"{_OPTIMIZER}{index}.{key}": value for key, value in values.items()}
        scaler = getattr(self.accelerator, "scaler", None)
        rows = [asdict(row) for row in self.rows]
        header = {name: getattr(self, name) for name in _STATE}
        header |= {"rows": rows, "scaler": scaler and scaler.state_dict(), **self.identity}
        write_tensors(self.path, tensors, header)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must be alike for a run to go on; the teacher by what it gives for the first batch."""
        fixed = {name: p for name, p in self.pair.student.state_dict().items() if name not in self.trained}
        sums = [_sum(tensor) for tensor in fixed.values()]
        settings = asdict(self.settings)
        hidden = self.pair.taught(0)[0][-1].hidden
        return {
            "settings": {key: settings[key] for key in settings if key not in ("cache", "checkpoint_every")},
            "blocks": self.pair.order,
            "trained": {name: list(parameter.shape) for name, parameter in self.trained.items()},
            "other numbers": zlib.crc32(json.dumps([*zip(fixed, sums, strict=True)]).encode()),
            "batches": [
                len(self.pair.batches),
                zlib.crc32(str([*map(_sum, tensors_of(self.pair.batches))]).encode()),
            ],
            "teacher": hidden.flatten()[:: -(-hidden.numel() // 64)].tolist(),
        }

    def _resume(self, path: Path) -> None:
        """Goes to where the checkpoint was written.

        Raises:
            ValueError: it is damaged, or belongs to another healing; says in what.
        """
        tensors, header = read_tensors(path, sealed=True)
        for name, own in self.identity.items():
            other = header.get(name)
            if own != other and not (name == "teacher" and _close(own, other)):
                raise ValueError(
                    f"{path} belongs to another healing, its {name} are others: {other!r:.80}, here {own!r:.80}; "
                    f"take another folder, or delete it to start anew"
                )
        try:
            for name in _STATE:
                setattr(self, name, header[name])
            self.rows = [HealingRow(**row) for row in header["rows"]]
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    parameter.copy_(tensors[_MODEL + name])
            values: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith(_OPTIMIZER):
                    index, _, key = name.removeprefix(_OPTIMIZER).partition(".")
                    values.setdefault(int(index), {})[key] = tensor.clone()
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": values})
            if header["scaler"]:
                self.accelerator.scaler.load_state_dict(header["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to start anew") from None


def _sum(tensor: Tensor) -> int:
    """A checksum of a tensor's numbers."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _close(own: list[float], other: Any) -> bool:
    """Whether two teachers give the same but for rounding."""
    if not isinstance(other, list) or len(other) != len(own):
        return False
    return float(relative_error(torch.tensor(other), torch.tensor(own))) < 1e-4
