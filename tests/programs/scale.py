"""Run by test_distributed.py: python scale.py fast|slow FOLDER. Processes on gloo, beside one process.

The parent loads torch and forks, so that a process costs no second. Each check is a function of its rank; what it
says when it is right is printed by rank 0.
"""

import copy
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from layer_cases import LAYERS
from torch import multiprocessing, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils.checkpoint import checkpoint

from nplex import optim
from nplex.algebra import dual, quaternion
from nplex.distributed import ColwiseParallel, RowwiseParallel, shard_placement
from nplex.lab.recipes.classification import ClassificationTask, Labelled
from nplex.lab.recipes.classifiers import Encoder
from nplex.lab.recipes.encoder_decoder import EncoderDecoder
from nplex.lab.recipes.language_model import LanguageModel
from nplex.lab.recipes.language_modelling import pieces
from nplex.lab.recipes.seq2seq import Encoded, Seq2SeqTask
from nplex.lab.train import Schedule, processes
from nplex.nn import FixedRule, LearnedRule, Linear, LowRankLinear, share

RULES = {
    "table": lambda: LearnedRule(4), "factors": lambda: LearnedRule(4, rank=7),
    "algebra": lambda: FixedRule(quaternion), "start": lambda: LearnedRule(4, rank=8, start=quaternion),
    "table of an algebra": lambda: LearnedRule(2, start=dual),
}  # fmt: skip


class Net(nn.Module):
    """Blocks of two layers; width 64, inner width 128."""

    def __init__(self, rule, *, shared=False, blocks=2, low_rank=False, recompute=False):
        super().__init__()
        self.recompute = recompute
        made = share(self, rule()) if shared else None
        self.blocks = nn.ModuleList(Block(lambda: made or rule(), low_rank) for _ in range(blocks))

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


class Block(nn.Module):
    def __init__(self, rule, low_rank):
        super().__init__()
        kind = partial(LowRankLinear, low_rank=2) if low_rank else Linear
        self.norm, self.up, self.down = nn.LayerNorm(64), kind(64, 128, rule=rule()), kind(128, 64, rule=rule())

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def steps(model, x, y, count=3, optimizer=None):
    """Losses of some steps of AdamW with nplex's groups."""
    optimizer = optimizer or adamw(model)
    losses = []
    for _ in range(count):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def adamw(model):
    return torch.optim.AdamW(optim.param_groups(model, lr=1e-2, weight_decay=0.1))


def data(rows=8):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(rows, 5, 64, generator=generator) for _ in range(2)]


def share_of(tensors, rank, world):
    return [tensor.chunk(world)[rank] for tensor in tensors]


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mean(values):
    total = torch.stack(values)
    dist.all_reduce(total)
    return total / dist.get_world_size()


def same(model, alone, **tolerance):
    """All parameters of a sharded model and of one in one process."""
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-5}
    for (name, found), expected in zip(model.state_dict().items(), alone.state_dict().values(), strict=True):
        torch.testing.assert_close(whole(found), expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def sharded(model, mesh):
    for block in model.blocks:
        fully_shard(block, mesh=mesh, shard_placement_fn=shard_placement(mesh))
    return fully_shard(model, mesh=mesh, shard_placement_fn=shard_placement(mesh))


def trained_alike(rank, rule="factors", mesh=None, **options):
    """FSDP2 of a model, and the model in one process, over some steps."""
    torch.manual_seed(0)
    alone = Net(RULES[rule], **options)
    model = sharded(copy.deepcopy(alone), mesh or init_device_mesh("cpu", (dist.get_world_size(),)))
    inputs = data()
    expected = steps(alone, *inputs)
    found = steps(model, *share_of(inputs, rank, dist.get_world_size()))
    torch.testing.assert_close(mean(found), torch.stack(expected), rtol=1e-5, atol=1e-6)
    return model, alone


def fsdp(rank):
    for rule in RULES:
        model, alone = trained_alike(rank, rule)
        same(model, alone)
    same(*trained_alike(rank, shared=True))
    same(*trained_alike(rank, low_rank=True))


def placements(rank):
    """n = 4 on as many or fewer processes stays; n = 2 on four takes rows, where they divide, else columns."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    place = shard_placement(mesh)
    four = dist.get_world_size() == 4
    for size, wanted in (
        ((4, 8, 8), None), ((2, 8, 6), Shard(1) if four else None), ((2, 6, 8), Shard(2) if four else None),
        ((2, 6, 6), None), ((2,), None), ((101, 8), None), ((3, 8, 8), Shard(1)),
    ):  # fmt: skip
        found = place(nn.Parameter(torch.empty(size)))
        assert found == wanted, (size, found)


def first_values(rank):
    """meta -> fully_shard -> to_empty -> reset_parameters, beside the same without shards; seeds may differ."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for options in (*({"rule": rule} for rule in RULES), {"shared": True}, {"low_rank": True}):
        make = partial(Net, RULES[options.pop("rule", "factors")], **options)
        with torch.device("meta"):
            alone, model = make(), make()
        alone.to_empty(device="cpu")
        torch.manual_seed(5)
        reset(alone)
        model = sharded(model, mesh).to_empty(device="cpu")
        torch.manual_seed(5 + rank)
        reset(model)
        same(model, alone, rtol=0, atol=0)
        assert optim.factor(model.blocks[0].up, "adamw") == optim.factor(alone.blocks[0].up, "adamw")


def every_layer(rank):
    """As first_values, for each kind of layer that there is, and a forward and backward."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name, case in LAYERS.items():
        with torch.device("meta"):
            alone, layer = (case.make(8, rule=4) for _ in range(2))
        alone.to_empty(device="cpu")
        fully_shard(layer, mesh=mesh, shard_placement_fn=shard_placement(mesh)).to_empty(device="cpu")
        for each in (alone, layer):
            torch.manual_seed(5)
            reset(each)
        for (key, found), expected in zip(layer.state_dict().items(), alone.state_dict().values(), strict=True):
            assert torch.equal(whole(found), expected), (name, key)
        inputs = case.inputs(8, torch.float32)
        for each in (layer, alone):
            first(each(*inputs)).square().sum().backward()
        for (key, parameter), other in zip(layer.named_parameters(), alone.parameters(), strict=True):
            if other.grad is not None:
                torch.testing.assert_close(
                    whole(parameter.grad), other.grad, rtol=1e-4, atol=1e-4, msg=f"{name} {key}"
                )


def first(output):
    return output if isinstance(output, torch.Tensor) else first(output[0])


def reset(model):
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


def tensor_parallel(rank):
    """Column and row styles, in all layouts, for all rules; gradients of everything."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for options in (*({"rule": rule} for rule in RULES), {"shared": True}):
        torch.manual_seed(rank)  # the first process's numbers count
        model = Net(RULES[options.pop("rule", "factors")], **options)
        for parameter in model.parameters():
            dist.broadcast(parameter.data, 0)
        alone = copy.deepcopy(model)
        for block in model.blocks:
            parallelize_module(block, mesh, plan)
        found, expected = steps(model, *data()), steps(alone, *data())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        same(model, alone)


def layouts(rank):
    """Around one layer: replicas, slices, parts of the sequence, DTensors; beside torch's own classes."""
    mesh = init_device_mesh("cpu", (world := dist.get_world_size(),))
    torch.manual_seed(0)
    for kind in (partial(Linear, rule=2), partial(Linear, rule=LearnedRule(4, rank=5)), nn.Linear):
        alone, x = kind(64, 32), torch.randn(2, 8, 64)
        for style in (
            ColwiseParallel(output_layouts=Replicate()), ColwiseParallel(output_layouts=Shard(1)),
            ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate()),
            ColwiseParallel(output_layouts=Replicate(), use_local_output=False),
            ColwiseParallel(use_local_output=False), RowwiseParallel(input_layouts=Replicate()),
            RowwiseParallel(input_layouts=Shard(1), output_layouts=Shard(1)),
            RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=False),
        ):  # fmt: skip
            layer = parallelize_module(copy.deepcopy(alone), mesh, style)
            cut = isinstance(style.input_layouts[0], Shard)
            own = (x.chunk(world, 1)[rank] if cut else x).clone().requires_grad_()
            all_of_it = x.clone().requires_grad_()
            y, expected = whole(layer(own)), alone(all_of_it)
            part = expected if y.shape == expected.shape else expected.chunk(world, 1)[rank]
            torch.testing.assert_close(y, part, rtol=1e-5, atol=1e-5)
            y.square().sum().backward()
            expected.square().sum().backward()
            given = distribute_tensor(x, mesh, [Shard(2)])
            torch.testing.assert_close(whole(layer(given)), part, rtol=1e-5, atol=1e-5)
            gradient = all_of_it.grad.chunk(world, 1)[rank] if cut else all_of_it.grad
            torch.testing.assert_close(own.grad, gradient, rtol=1e-4, atol=1e-4)


def refusals(rank):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer, style, words in (
        (Linear(64, 30, rule=2), ColwiseParallel(), "out_features = 30 must be a multiple of n = 2 times 4"),
        (Linear(30, 64, rule=4), RowwiseParallel(), "in_features = 30 must be a multiple of n = 4 times 4"),
        (LowRankLinear(64, 64, rule=4, low_rank=2), RowwiseParallel(), "got LowRankLinear"),
    ):
        with pytest.raises(ValueError, match=words):
            parallelize_module(layer, mesh, style)


def hybrid(rank):
    """HSDP: two replicas of two shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for options in ({"rule": "table"}, {"shared": True}):
        same(*trained_alike(rank, mesh=mesh, **options))


def two_dimensions(rank):
    """Tensor parallelism inside, FSDP2 outside, from the meta device on."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    for shared in (False, True):
        make = partial(Net, RULES["factors"], shared=shared)
        with torch.device("meta"):
            alone, model = make(), make()
        for block in model.blocks:
            parallelize_module(block, mesh["tensor"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        sharded(model, mesh["data"]).to_empty(device="cpu")
        alone.to_empty(device="cpu")
        for each in (alone, model):
            torch.manual_seed(5)
            reset(each)
        same(model, alone, rtol=0, atol=0)
        inputs = data()
        expected = steps(alone, *inputs)
        found = steps(model, *share_of(inputs, mesh["data"].get_local_rank(), 2))
        torch.testing.assert_close(mean(found), torch.stack(expected), rtol=1e-5, atol=1e-6)
        same(model, alone)


def recomputed(rank):
    """Activation checkpointing inside FSDP2, with rules of their own and a shared one."""
    for shared in (False, True):
        same(*trained_alike(rank, recompute=True, shared=shared))


def saved(rank, folder):
    """Trains two steps and writes; what goes on from there is compared with four steps in one process."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = sharded(Net(RULES["factors"], shared=True), mesh)
    optimizer = adamw(model)
    steps(model, *share_of(data(), rank, dist.get_world_size()), count=2, optimizer=optimizer)
    state, moments = get_state_dict(model, optimizer)
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=folder)


def read(rank, folder):
    """Goes on with what another number of processes wrote."""
    mesh, world = init_device_mesh("cpu", (dist.get_world_size(),)), dist.get_world_size()
    torch.manual_seed(0)
    alone = Net(RULES["factors"], shared=True)
    torch.manual_seed(9)
    model = Net(RULES["factors"], shared=True)
    model = sharded(model, mesh) if world > 1 else model
    optimizer = adamw(model)
    state, moments = get_state_dict(model, optimizer)
    dcp.load({"model": state, "optimizer": moments}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=moments)
    steps(model, *share_of(data(), rank, world), count=2, optimizer=optimizer)
    steps(alone, *data(), count=4)
    same(model, alone)


def evaluation(rank):
    """The laboratory's scores, to the bit; uneven work, and less of it than processes."""
    torch.manual_seed(0)
    world = dist.get_world_size()
    for count in (0, 1, world, 2 * world + 1):
        assert processes.spread(range(count), lambda number: (number, str(number))) == [
            (number, str(number)) for number in range(count)
        ]
    device = torch.device("cpu")
    lines = [torch.randint(1, 20, (length,)) for length in torch.randint(2, 9, (600,)).tolist()]
    text, pairs = torch.randint(20, (1500,)), Encoded([("", "")] * 600, (lines, lines[::-1]))
    labelled = Labelled((lines,), torch.randint(2, (600,)), ["all"] * 600)
    sizes = {"width": 16, "heads": 2, "feed_forward": 32, "layers": 1, "dropout": 0.1, "longest": 16}
    reads, chooses, writes = LanguageModel(20, **sizes), Encoder(20, 2, **sizes), EncoderDecoder(20, **sizes)
    tasks = [
        lambda: torch.cat(pieces(reads, text, 16, device)).tolist(),
        lambda: ClassificationTask(SimpleNamespace(dev=labelled), 8).scores(chooses, device),
        lambda: Seq2SeqTask(SimpleNamespace(dev=pairs), Schedule()).scores(writes.eval(), device),
    ]
    found = [score() for score in tasks]
    several, processes._several = processes._several, lambda: False
    assert found == [score() for score in tasks]
    processes._several = several


def work(rank, world, port, names, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{port}", rank=rank, world_size=world)
    for name in names:
        check = globals()[name]
        check(rank, Path(folder) / "saved") if name in ("saved", "read") else check(rank)
        dist.barrier()
        if rank == 0:
            print(name, world, flush=True)
    dist.destroy_process_group()


FAST = ["placements", "first_values", "every_layer", "tensor_parallel", "saved"]
SLOW = ["fsdp", "layouts", "refusals", "hybrid", "two_dimensions", "recomputed", *FAST]
RUNS = {
    "fast": [(2, ["evaluation", *FAST]), (1, ["read"])],
    "slow": [(4, SLOW), (2, ["read", "layouts"]), (1, ["read"])],
}

if __name__ == "__main__":
    for number, (size, checks) in enumerate(RUNS[sys.argv[1]]):
        multiprocessing.start_processes(work, (size, number, checks, sys.argv[2]), nprocs=size, start_method="fork")
