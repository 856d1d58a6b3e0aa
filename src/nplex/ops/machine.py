"""What a machine can do, in five numbers, and what a list of operations costs there.

The numbers are measured once by `nplex measure` and kept in the user's cache folder; without that there is `DEFAULT`.
A model this small gives times to about 20 %; what the plan needs is their order.
"""

import dataclasses
import functools
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Machine:
    """How fast one device runs torch, with float32.

    Attributes:
        flops_per_second: of a large matmul; a multiply-add counts 2.
        bytes_per_second: of a pass over what lies in the cache; of the mixing matmuls above all, with as few rows as
            the algebra has dimensions.
        memory_bytes_per_second: of a pass over what does not; a matmul there reads twice and what is written counts
            twice.
        cache_bytes: so much of what an operation reads and writes lies in the cache.
        seconds_per_call: of one torch operation with what Python does around it.
    """

    flops_per_second: float
    bytes_per_second: float
    memory_bytes_per_second: float
    cache_bytes: float
    seconds_per_call: float

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")

    def __str__(self) -> str:
        return "\n".join((
            f"  {self.flops_per_second / 1e9:10.1f} GFLOP/s  large matmul",
            f"  {self.bytes_per_second / 1e9:10.1f} GB/s     in the cache",
            f"  {self.memory_bytes_per_second / 1e9:10.1f} GB/s     beyond the cache",
            f"  {self.cache_bytes / 1e6:10.1f} MB       cache",
            f"  {self.seconds_per_call * 1e6:10.1f} us       one torch operation",
        ))


# One thread of an AMD EPYC (Zen 4), torch 2.13 with MKL, rounded.
DEFAULT = Machine(
    flops_per_second=90e9,
    bytes_per_second=42e9,
    memory_bytes_per_second=14e9,
    cache_bytes=10e6,
    seconds_per_call=4e-6,
)


@dataclass(frozen=True)
class Cost:
    """What one method does for one call of the layer, or for one training step.

    Attributes:
        method: its name.
        flops: floating-point operations; a multiply-add counts 2.
        bytes: what its operations read and write.
        calls: torch operations, and what costs as much.
        seconds: the estimate, see Work.
    """

    method: str
    flops: int
    bytes: int
    calls: int
    seconds: float


class Work:
    """Adds up what operations cost on a machine.

    Each takes `seconds_per_call + flops / flops_per_second + min(bytes, cache_bytes) / bytes_per_second + beyond`,
    with `beyond = max(0, far - cache_bytes) / memory_bytes_per_second`, where far are the bytes read, twice for a
    matmul, and twice the bytes written: new pages, and lines that are read before they are written.
    """

    def __init__(self, machine: Machine, element_size: int) -> None:
        self.machine, self.element_size = machine, element_size
        self.flops = self.bytes = self.seconds = 0.0
        self.calls = 0

    def matmul(
        self, rows: int | float, inner: int | float, columns: int | float, *, count: int = 1, packed: bool = False
    ) -> None:
        """`count` matmuls, rows x inner by inner x columns, which read twice: once to rearrange for the processor.

        With one row or column there is nothing to rearrange, nor with weights packed before; those are also read
        while others are multiplied.
        """
        flops, read, written = (
            2 * count * rows * inner * columns,
            count * (rows + columns) * inner,
            count * rows * columns,
        )
        self._add(flops, read, written, again=0 if packed or 1 in (rows, columns) else read)
        if packed:
            self.seconds -= min(self._compute(flops), self._beyond(read + 2 * written))

    def mix(self, rows: int | float, inner: int | float, columns: int | float) -> None:
        """A matmul where two of the sizes are about the algebra's: one pass over the long side."""
        self._add(2 * rows * inner * columns, rows * inner + inner * columns, rows * columns)

    def move(self, read: int | float, written: int | float) -> None:
        """So many numbers read and written, by copies and sums."""
        self._add(0, read, written)

    def stream(self, written: int | float) -> None:
        """So many numbers that were written in pieces go to memory all the same."""
        self.seconds += self._beyond(2 * written)

    def call(self, times: int) -> None:
        """Operations that move next to nothing; what autograd and Python do around others counts as some."""
        self.calls += times
        self.seconds += times * self.machine.seconds_per_call

    def repeat(self, times: int, other: "Work") -> None:
        """All of `other`, so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.calls += times * other.calls
        self.seconds += times * other.seconds

    def cost(self, method: str) -> Cost:
        """The sums."""
        return Cost(method, round(self.flops), round(self.bytes), self.calls, self.seconds)

    def _add(self, flops: int | float, read: int | float, written: int | float, again: int | float = 0) -> None:
        """One operation and its pass over memory."""
        size = self.element_size * (read + written)
        self.flops += flops
        self.bytes += size
        self.seconds += self._compute(flops)
        self.seconds += min(size, self.machine.cache_bytes) / self.machine.bytes_per_second
        self.seconds += self._beyond(read + again + 2 * written)
        self.call(1)

    def _compute(self, flops: int | float) -> float:
        """Seconds for the arithmetic; 8-byte numbers take twice as long."""
        return flops / self.machine.flops_per_second * max(1.0, self.element_size / 4)

    def _beyond(self, numbers: int | float) -> float:
        """Seconds for what the cache does not hold."""
        far = self.element_size * numbers - self.machine.cache_bytes
        return max(0.0, far) / self.machine.memory_bytes_per_second


def current(device: str = "cpu") -> Machine:
    """The machine measured for this type of device and this number of threads, else `DEFAULT`.

    The file is read once a process, the first time that somebody asks. While torch.compile or export look on it is
    `DEFAULT`: what they make shall not depend on a file of the machine that made it.
    """
    if torch.compiler.is_compiling():
        return DEFAULT
    return _known().get((device, torch.get_num_threads() if device == "cpu" else 1), DEFAULT)


def cache_file() -> Path:
    """`$XDG_CACHE_HOME/nplex/machine.json`, or `~/.cache/nplex/machine.json`."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(folder) if os.path.isabs(folder) else Path.home() / ".cache") / "nplex" / "machine.json"


def load(path: Path) -> dict[tuple[str, int], Machine]:
    """The machines of a file by device and threads; none if there is no file.

    Raises:
        ValueError: the file is damaged; names it.
    """
    try:
        entries = json.loads(path.read_text("utf-8")).items()
        keys = [(device, int(threads)) for device, threads in (name.split() for name, _ in entries)]
        values = [{name: float(number) for name, number in value.items()} for _, value in entries]
        return {key: Machine(**value) for key, value in zip(keys, values, strict=True)}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds no measured machines ({error}); `nplex measure` writes it anew") from error


def save(machine: Machine, path: Path, *, device: str = "cpu") -> None:
    """Writes it beside what the file holds for other devices and numbers of threads; a damaged file is replaced."""
    try:
        known = load(path)
    except ValueError:
        known = {}
    known[device, torch.get_num_threads() if device == "cpu" else 1] = machine
    text = json.dumps({f"{name} {threads}": dataclasses.asdict(m) for (name, threads), m in known.items()}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text + "\n", "utf-8")
    beside.replace(path)


@functools.cache
def _known() -> dict[tuple[str, int], Machine]:
    """What the user's file holds; read once a process."""
    try:
        return load(cache_file())
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(f"{error}; planning with the default machine", stacklevel=2)
        return {}


def measure(device: str = "cpu") -> Machine:
    """Times five small torch programs, one or two seconds in all; of many runs the best counts.

    Each is one that `Work` has a formula for, solved for its constant.

    Args:
        device: a type of device, as cpu or cuda.

    Raises:
        ValueError: torch cannot compute there.
    """
    try:
        torch.ones(1, device=device).sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be measured: {str(error).splitlines()[0]}") from error
    size = 1024 if device == "cpu" else 8192
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
