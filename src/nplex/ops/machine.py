"""What a machine can do, in a few numbers: `nplex measure` keeps them in the user's cache folder, else defaults."""

import dataclasses
import functools
import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from nplex.ops.cards import CARDS, GPU, card


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
class Accelerator(Machine):
    """How fast a GPU runs torch: arithmetic, traffic and what Python does go on at the same time.

    Attributes:
        flops_per_second: of a large matmul in float32.
        bytes_per_second: of a copy, read and written; `memory_bytes_per_second` is the same.
        cache_bytes: not used.
        seconds_per_call: of one torch operation on the processor that starts it.
        half_flops_per_second: in bfloat16 or float16.
        double_flops_per_second: in float64.
        seconds_per_kernel: from the end of one kernel to the next.
    """

    half_flops_per_second: float
    double_flops_per_second: float
    seconds_per_kernel: float

    def __str__(self) -> str:
        return "\n".join((
            f"  {self.half_flops_per_second / 1e12:10.1f} TFLOP/s  large matmul, 2 bytes a number",
            f"  {self.flops_per_second / 1e12:10.1f} TFLOP/s  4 bytes",
            f"  {self.double_flops_per_second / 1e12:10.1f} TFLOP/s  8 bytes",
            f"  {self.bytes_per_second / 1e12:10.2f} TB/s     a copy, read and written",
            f"  {self.seconds_per_call * 1e6:10.1f} us       starting one torch operation",
        ))


def accelerator(half: float, single: float, double: float, terabytes: float) -> Accelerator:
    """A GPU of so many TFLOP/s in three types and TB/s, with the usual waits."""
    rate = terabytes * 1e12
    return Accelerator(single * 1e12, rate, rate, 50e6, 5e-6, half * 1e12, double * 1e12, 2e-6)


ACCELERATORS = {name: accelerator(*figures) for name, figures in CARDS.items()}


def current(device: str = "cpu") -> Machine:
    """The machine measured for this type of device and this number of threads, else the default for it.

    The file is read once a process, the first time that somebody asks. While torch.compile or export look on it is
    the default: what they make shall not depend on a file of the machine that made it.
    """
    default = ACCELERATORS[card()] if device == GPU else DEFAULT
    if torch.compiler.is_compiling():
        return default
    return _known().get((device, torch.get_num_threads() if device == "cpu" else 1), default)


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
        kinds = [Accelerator if "half_flops_per_second" in value else Machine for value in values]
        return {key: kind(**value) for key, kind, value in zip(keys, kinds, values, strict=True)}
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
