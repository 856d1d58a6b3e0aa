"""Run by test_distributed.py: two processes on gloo train a model; rank 0 compares with one process."""

import copy
import itertools
import sys

import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from nplex.nn import LearnedRule, Linear, share


class Net(nn.Module):
    def __init__(self, shared):
        super().__init__()
        rule = share(self, LearnedRule(4)) if shared else 4
        self.layers = nn.ModuleList(Linear(16, 16, rule=rule) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def wrapped(model, how):
    if how == "ddp":
        return DistributedDataParallel(model)
    for layer in model.layers:
        fully_shard(layer)
    return fully_shard(model)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def work(rank, port):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for how, shared in itertools.product(("ddp", "fsdp"), (False, True)):
        compare(rank, how, shared)
        dist.barrier()
        if rank == 0:
            print("equal", how, "shared" if shared else "own", flush=True)
    dist.destroy_process_group()


def compare(rank, how, shared):
    torch.manual_seed(0)
    alone = Net(shared)
    model = copy.deepcopy(alone)
    x = torch.randn(8, 16)
    outer = wrapped(model, how)
    ours, theirs = torch.optim.SGD(outer.parameters(), 0.5), torch.optim.SGD(alone.parameters(), 0.5)
    for _ in range(3):
        step(outer, ours, x[4 * rank : 4 * rank + 4])
        step(alone, theirs, x)
    for (name, found), expected in zip(model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(found.data), expected.data, rtol=1e-5, atol=1e-6, msg=name)


if __name__ == "__main__":
    multiprocessing.start_processes(work, (int(sys.argv[1]),), nprocs=2, start_method="fork")
