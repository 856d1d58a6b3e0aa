"""Runs of a copy of a model: what its layers get, what is kept for backward, and how long it takes."""

import copy
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from nplex.convert.checking import call, run
from nplex.convert.references import walk
from nplex.nn import cached

ADAM = 4  # a parameter, its gradient, and Adam's two moments
BUDGET = 1.0
Given = tuple[tuple, dict[str, Any]]


class Times(NamedTuple):
    """Seconds of a forward for inference, of a training step, and of the optimizer's part in it."""

    inference: float
    step: float
    optimizer: float = 0.0


def runnable(model: nn.Module) -> nn.Module:
    """A copy with numbers: those of the model, or of one on the meta device small random ones.

    Raises:
        ValueError: it cannot be copied; says why.
    """
    try:
        copied = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"the model cannot be copied, so that it cannot be run: {error}") from error
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        copied.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.normal_(std=0.02)
            for buffer in copied.buffers():
                buffer.fill_(1 if buffer.is_floating_point() else 0)
    return copied


def observed(model: nn.Module, example: Any, names: Iterable[str]) -> tuple[dict[str, list[Given]], int]:
    """What layers are called with in one forward, and the arithmetic of all, multiply-adds as 2.

    Raises:
        ValueError: the model does not take the example.
    """
    calls: dict[str, list[Given]] = {name: [] for name in names}

    def see(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: calls[name].append((args, kwargs))

    hooks = [model.get_submodule(name).register_forward_pre_hook(see(name), with_kwargs=True) for name in calls]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(model.eval(), example, "the example")
    for hook in hooks:
        hook.remove()
    return calls, counter.get_total_flops()


def timings(model: nn.Module, example: Any) -> Times:
    """How long a model takes: inside nplex.nn.cached, and forward, backward, a step of AdamW."""
    model.eval()
    with torch.no_grad(), cached(model):
        inference = seconds(lambda: call(model, example))
    optimizer = torch.optim.AdamW(model.train().requires_grad_().parameters(), lr=0.0)

    def gradients() -> None:
        loss: Any = sum(t.float().mean() for t in outputs(call(model, example)))
        optimizer.zero_grad()
        loss.backward()

    gradients()
    return Times(inference, seconds(lambda: (gradients(), optimizer.step())), seconds(optimizer.step, BUDGET / 4))


def layer_timings(layer: nn.Module, given: Given) -> Times:
    """How long one call of a layer takes, without gradients and with all of them."""
    args, kwargs = given
    with torch.no_grad():
        forward = seconds(lambda: layer(*args, **kwargs), BUDGET / 4)
    args = [t.detach().requires_grad_(t.is_floating_point()) if isinstance(t, Tensor) else t for t in args]
    leaves = [t for t in (*args, *layer.parameters()) if isinstance(t, Tensor) and t.requires_grad]

    def both() -> object:
        found = outputs(layer(*args, **kwargs))
        return torch.autograd.grad(found, leaves, [torch.ones_like(t) for t in found], allow_unused=True)

    return Times(forward, seconds(both, BUDGET / 4))


def training_bytes(model: nn.Module, example: Any) -> int:
    """Bytes at the peak of a training step: parameters, gradients, Adam's moments, and what is kept for backward."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
        result = call(model.train(), example)
    for own in (*model.parameters(), *model.buffers()):
        kept.pop(own.untyped_storage().data_ptr(), None)
    del result
    return (
        sum(kept.values()) + sum(ADAM * p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    )


def outputs(result: Any) -> list[Tensor]:
    """The tensors of a result that have gradients."""
    found = [result] if isinstance(result, Tensor) else [slot.get() for slot in walk([result])]
    return [t for t in found if isinstance(t, Tensor) and t.requires_grad and t.grad_fn is not None]


def seconds(do: Callable[[], object], budget: float = BUDGET) -> float:
    """The median of three runs or more, after one that does not count.

    With one thread on a CPU its own time counts, so that other programs do not.
    """
    on_gpu = torch.cuda.is_available()
    clock = time.thread_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 4 or time.perf_counter() - began < budget:
        start = clock()
        do()
        if on_gpu:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return statistics.median(times[1:])
