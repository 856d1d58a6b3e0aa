"""A student beside its teacher: what both give for a batch, and how far that is apart."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nplex.convert.checking import run
from nplex.pretrained.blocks import Call, mapped, replay, tensors_of, watched
from nplex.pretrained.distillation import Outputs, mask_of, output_loss, relative_error
from nplex.pretrained.healing_report import Healing


class Pair:
    """A student and its teacher on the same batches.

    Attributes:
        student: the model that is healed.
        batches: what the models take.
        trained_on: how many batches train; those behind them measure.
        order: the names of blocks as they run.
        groups: the first and last call of each group, of those that have trained parameters.
        alpha: how much of the converted layers counts, the dense ones have the rest; only where layers fade in.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module, batches: Sequence[Any], names: list[str], settings: Healing,
        outputs: Outputs | None,
    ) -> None:  # fmt: skip
        self.student, self._teacher, self.batches, self._names = student, teacher, batches, names
        self._outputs, self._room, self.alpha = outputs or output_loss, settings.cache, 1.0
        self._kept: dict[int, tuple[list[Call], Any]] = {}
        self.trained_on = len(batches) - min(8, len(batches) // 10)
        self._again = settings.group_steps + settings.steps > self.trained_on
        self.order: list[str] = []
        if strange := [name for name in names if name not in dict(teacher.named_modules())]:
            raise ValueError(f"the teacher has no block {strange[0]}; it must be the model before its conversion")
        self.order = [each.block for each in self.taught(0)[0]]
        if missing := [name for name in names if name not in self.order]:
            raise ValueError(f"block {missing[0]} never runs; name the blocks that run by blocks=[...]")
        ranges = [(i, min(i + settings.group, len(self.order))) for i in range(0, len(self.order), settings.group)]
        self.groups = [(i, j) for i, j in ranges if self.parameters(i, j)]

    def parameters(self, first: int, last: int) -> list[nn.Parameter]:
        """The trained parameters of the blocks of some calls."""
        found = {p: None for name in self.order[first:last] for p in self.student.get_submodule(name).parameters()}
        return [parameter for parameter in found if parameter.requires_grad]

    @torch.no_grad()
    def taught(self, index: int) -> tuple[list[Call], Any]:
        """The calls of the teacher's blocks for a batch, and its outputs.

        Raises:
            ValueError: the teacher gives numbers that are not finite, or its blocks run in another order than before.
        """
        if index in self._kept:
            return self._kept[index]
        with watched(self._teacher, self._names) as calls:
            output = run(self._teacher, _on(self._teacher, self.batches[index]), f"batch {index}")
        if self.order and [each.block for each in calls] != self.order:
            raise ValueError(f"the teacher's blocks run in another order for batch {index} than for batch 0")
        for each in calls:
            if not each.hidden.isfinite().all():
                raise ValueError(
                    f"block {each.block} of the teacher gives nan or inf for batch {index}; look at both"
                )
        seen = {id(t): t.nbytes for each in calls for t in tensors_of((*each.arguments, each.outputs))}
        size = sum((seen | {id(t): t.nbytes for t in tensors_of(output)}).values())
        if size <= self._room and (self._again or index >= self.trained_on):
            self._room -= size
            self._kept[index] = calls, output
        return calls, output

    def group_losses(self, index: int) -> Iterator[Tensor]:
        """The loss of each group for a batch: its hidden states from the teacher's."""
        calls, _ = self.taught(index)
        for first, last in self.groups:
            yield self._errors(replay(self.student, calls, first, last), calls[first:last], index).mean()

    def whole_losses(self, index: int) -> Iterator[Tensor]:
        """The loss of the whole model for a batch."""
        errors, output = self.errors(index)
        yield errors.mean() + output

    def errors(self, index: int) -> tuple[Tensor, Tensor]:
        """The errors of hidden states in the whole model for a batch, one for each call, and the loss of outputs."""
        theirs, output = self.taught(index)
        batch = _on(self.student, self.batches[index])
        with watched(self.student, self._names) as calls:
            own = run(self.student, batch, f"batch {index}")
        if [each.block for each in calls] != self.order:
            raise ValueError("the model's blocks run in another order than the teacher's")
        loss: Any = self._outputs(own, output, batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise ValueError(f"outputs= must give a loss, a tensor of one number; got {found}")
        return self._errors([each.hidden for each in calls], theirs, index), loss.reshape(())

    def _errors(self, hidden: list[Tensor], calls: list[Call], index: int) -> Tensor:
        two = getattr(getattr(self.student, "config", None), "is_encoder_decoder", False)
        batch, errors = self.batches[index], []
        for own, each in zip(hidden, calls, strict=True):
            mask = mask_of(batch, own, decoder=two and "decoder" in each.block.split("."))
            errors.append(relative_error(own, each.hidden, mask))
        return torch.stack(errors)

    @contextmanager
    def fading(self) -> Iterator[None]:
        """Converted layers give `(1 - alpha) dense + alpha converted`, the dense ones the teacher's."""
        dense = dict(self._teacher.named_modules())
        with ExitStack() as stack:
            outer: list[str] = []
            for name, module in self.student.named_modules():
                inside = any(name.startswith(f"{each}.") for each in outer)
                if name in dense and type(dense[name]) is not type(module) and not inside:
                    outer.append(name)
                    hook = partial(self._faded, dense[name])
                    stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            yield

    def _faded(self, dense: nn.Module, _module: nn.Module, positional: tuple, named: dict, output: Any) -> Any:
        if self.alpha >= 1:
            return None
        theirs = iter(tensors_of(dense(*positional, **named)))
        return mapped(output, lambda own: own.lerp(next(theirs), 1 - self.alpha))


def _on(model: nn.Module, batch: Any) -> Any:
    """A batch on a model's device, in its type; of an offloaded model where it is, its hooks move it."""
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return batch
    device = None if like.is_meta else like.device
    return mapped(batch, lambda tensor: tensor.to(device, like.dtype if tensor.is_floating_point() else tensor.dtype))
