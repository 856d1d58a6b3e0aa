"""Several processes under torchrun."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
SHARDING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")


def main_process() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def restarted() -> bool:
    """Whether torchrun started this process again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def check_launcher() -> None:
    """Refuses what `accelerate launch` can ask for and the loop does not do.

    Raises:
        ValueError: the model would be sharded; says how to start instead.
    """
    if asked := [name for name in SHARDING if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true"]:
        raise ValueError(
            f"training keeps the whole model in each process (DDP), and ACCELERATE_USE_{asked[0]} asks for another "
            f"way: start it with torchrun; docs/scale.md shows how to shard a model in a loop of your own"
        )


def join() -> None:
    """Lets the processes of torchrun find each other, where torch alone would not after a restart.

    torchrun keeps one store over all restarts. In it a process that was started again finds the addresses of dead
    ones, waits for them and fails, or stands still for half an hour (pytorch/pytorch#135712). So each start gets
    names of its own. Of several machines each counts its restarts alone: there torch's switch is needed.

    Raises:
        ValueError: restarts are allowed on several machines, and the switch is not set.
    """
    given = os.environ.get
    shared = given("TORCHELASTIC_USE_AGENT_STORE") == "True" and int(given("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if not shared or torch.distributed.is_initialized():
        return
    if int(given("GROUP_WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "--max-restarts on several machines needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun on each "
            "of them: processes that torchrun starts again would wait for dead ones"
        )
    from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    store, rank, processes = next(rendezvous("env://"))
    store = PrefixStore(f"start {given('TORCHELASTIC_RESTART_COUNT')}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=processes)


def wait() -> None:
    """Until all processes are here; at once where there is one."""
    if _several():
        torch.distributed.barrier()


@functools.cache
def hosts() -> Any:
    """The group in which processes exchange numbers that no GPU has to wait for; None where that is the usual one."""
    return torch.distributed.new_group(backend="gloo") if torch.distributed.get_backend() != "gloo" else None


def spread(work: Sequence[Item], do: Callable[[Item], Result]) -> list[Result]:
    """`[do(item) for item in work]`; each is done by one process, and all get all results."""
    if not _several():
        return [do(item) for item in work]
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    every: list[Any] = [None] * processes
    torch.distributed.all_gather_object(every, [do(item) for item in work[rank::processes]])
    return [every[number % processes][number // processes] for number in range(len(work))]


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
