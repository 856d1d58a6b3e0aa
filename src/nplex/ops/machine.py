"""What a machine can do, in five numbers: `nplex measure` keeps them in the user's cache folder, else `DEFAULT`."""

import dataclasses
import functools
import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch


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
