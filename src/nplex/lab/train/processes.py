"""Several processes under torchrun."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch


def main_process() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def restarted() -> bool:
    """Whether torchrun started this process again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def join() -> None:
    """Lets the processes of torchrun find each other, each start under names of its own.

    torchrun keeps one store over restarts, in which processes find the addresses of dead ones, and then stand still
    (pytorch/pytorch#135712). Machines count their restarts each for itself, so several need torch's switch.

    Raises:
        ValueError: restarts are allowed on several machines without the switch, or accelerate is to shard the model.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise ValueError(
                f"training keeps the whole model in each process (DDP), and ACCELERATE_USE_{name} asks for another "
                f"way: start it with torchrun; docs/scale.md shows how to shard a model in a loop of your own"
            )
    given = os.environ
    shared = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and given["TORCHELASTIC_MAX_RESTARTS"] != "0"
    if not shared or torch.distributed.is_initialized():
        return
    if given["GROUP_WORLD_SIZE"] != "1":
        raise ValueError(
            "--max-restarts on several machines needs --rdzv-backend c10d, and TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 "
            "before each torchrun: processes that are started again would wait for dead ones"
        )
    from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    store, rank, processes = next(rendezvous("env://"))
    store = PrefixStore(f"start {given['TORCHELASTIC_RESTART_COUNT']}", store)
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


def spread(work: Sequence[Any], do: Callable[[Any], Any]) -> list[Any]:
    """`[do(item) for item in work]`; each is done by one process, and all get all results."""
    if not _several():
        return [do(item) for item in work]
    rank, processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    every: list[Any] = [None] * processes
    torch.distributed.all_gather_object(every, [do(item) for item in work[rank::processes]])
    return [every[number % processes][number // processes] for number in range(len(work))]


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
