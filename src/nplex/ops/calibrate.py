"""Measures the numbers of this machine."""

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch.nn import functional as F

from nplex.ops.machine import Accelerator, Machine, accelerator


def measure(device: str = "cpu") -> Machine:
    """Times some small torch programs, one or two seconds in all; of many runs the best counts.

    Each is one that `Work` has a formula for, solved for its constant. On a CPU five numbers of a Machine are
    measured, elsewhere those of an Accelerator.

    Args:
        device: a type of device, as cpu or cuda.

    Raises:
        ValueError: torch cannot compute there.
    """
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be measured: {str(error).splitlines()[0]}") from error
    return _measure_cpu() if device == "cpu" else measure_accelerator(device)


def measure_accelerator(device: str, size: int = 8192, numbers: int = 2**27) -> Accelerator:
    """Times square matmuls in three types, a copy that no cache holds, and many operations with nothing to do.

    Args:
        device: a type of device.
        size: rows of the matmul in float16; half of them in float32, a quarter in float64.
        numbers: how many are copied, of 4 bytes.
    """
    rates = []
    for dtype, side in ((torch.float16, size), (torch.float32, size // 2), (torch.float64, size // 4)):
        square = torch.randn(side, side, device=device).to(dtype)
        rates.append(2 * side**3 / _seconds(lambda square=square: square @ square, device))
    copied = torch.zeros(numbers, device=device)
    target, few = torch.empty_like(copied), torch.ones(8, 8, device=device)
    rate = 2 * 4 * numbers / _seconds(lambda: target.copy_(copied), device)
    call = _seconds(lambda: few + few, device)
    half, single, double = rates
    return replace(accelerator(half / 1e12, single / 1e12, double / 1e12, rate / 1e12), seconds_per_call=call)


def _measure_cpu() -> Machine:
    device, size = "cpu", 1024
    square, mixing, long = (torch.randn(*s, device=device) for s in ((size, size), (8, 8), (8, 2**15)))
    vector, weight = torch.randn(1, 4096, device=device), torch.randn(4096, 4096, device=device)
    mixed, arrays = torch.empty_like(long), {2**k: torch.zeros(2**k, device=device) for k in range(17, 25)}
    call = _seconds(lambda: torch.mm(mixing, mixing.mT.reshape(8, 8)).view(64), device)
    flops = 2 * size**3 / _seconds(lambda: square @ square, device)
    took = _seconds(lambda: torch.mm(mixing, long, out=mixed), device)
    near = 4 * 2 * long.numel() / _rest(took, call / 3 + 2 * 8 * long.numel() / flops)
    rates = {4 * k: k / _seconds(x.zero_, device, 0.05) for k, x in arrays.items()}
    cache = max(k for k, rate in rates.items() if rate > max(rates.values()) / 2)
    far = (4 * weight.numel() - cache) / _rest(_seconds(lambda: F.linear(vector, weight), device), cache / near)
    return Machine(flops, near, far, float(cache), call)


def _seconds(run: Callable[[], object], device: str, budget: float = 0.15) -> float:
    """The least of many runs, each long enough for the clock, until the budget is spent.

    With one thread on a CPU its own time counts, so that another process does not.
    """
    clock = time.thread_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    repeats, least, began = 1, math.inf, time.perf_counter()
    while least == math.inf or time.perf_counter() - began < budget:
        start = clock()
        for _ in range(repeats):
            run()
        if device != "cpu":
            torch.get_device_module(device).synchronize()
        took = clock() - start
        if took < 1e-4:
            repeats *= 2
        else:
            least = min(least, took / repeats)
    return least


def _rest(seconds: float, known: float) -> float:
    """What is left when the known part is taken away; a tenth at least, as a busy machine measures strange things."""
    return max(seconds - known, seconds / 10)
