"""Layers on several devices: how torch's FSDP2 is to shard them, and how tensor parallelism splits a Linear.

All else is torch's own: `fully_shard`, `parallelize_module`, `torch.distributed.checkpoint`, torchrun.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    parallel,
)
from torch.distributed.tensor.placement_types import Placement

from nplex.algebra import BilinearAlgorithm
from nplex.nn import Linear
from nplex.nn.twin import Twin
from nplex.ops import product

__all__ = ["shard_placement", "ColwiseParallel", "RowwiseParallel"]

# So much larger may padding make what an all-gather moves, before another dimension is taken.
PADDED = 1.1
Local = Callable[[Any, Any, DeviceMesh, Tensor], Tensor]


def shard_placement(mesh: DeviceMesh) -> Callable[[nn.Parameter], Shard | None]:
    """The `shard_placement_fn` of `fully_shard`: another dimension than the first one where that would be padded.

    FSDP2 shards the first dimension. Of components, n x a x b, that is n, and what does not divide is padded: of p
    processes each sends `ceil(n / p) a b` numbers, so an all-gather moves `p ceil(n / p) / n` times the layer. With
    n = 4 on 8 processes that is twice the layer, and four of them hold all of it, with its gradients and its
    optimizer's state, while four hold nothing. A width of 4096 to 4096 in bfloat16 has 8 MiB of components: 16 MiB
    are moved, and 2 MiB lie on each of four devices. Where 8 divides a, `Shard(1)` moves 8 MiB, and 1 MiB lies on
    every device. Where n divides well, as n = 8 on 2, 4 or 8 processes, the first dimension stays: any other costs
    one more copy in memory.

    Parameters of torch's own layers are treated alike. A dimension that tensor parallelism has split is not split
    again.

    Args:
        mesh: the one that `fully_shard` gets; of two dimensions (HSDP), the last one shards.

    Examples:
        >>> from torch.distributed.fsdp import fully_shard
        >>> def shard(layers: nn.ModuleList, mesh: DeviceMesh) -> None:
        ...     for layer in layers:
        ...         fully_shard(layer, mesh=mesh, shard_placement_fn=shard_placement(mesh))
    """
    shards = mesh.size(mesh.ndim - 1)

    def placement(parameter: nn.Parameter) -> Shard | None:
        split = isinstance(parameter, DTensor)
        size = parameter.to_local().shape if split else parameter.shape
        taken = [each.dim for each in parameter.placements if isinstance(each, Shard)] if split else []
        if shards * math.ceil(size[0] / shards) <= PADDED * size[0] and (0 not in taken or len(size) == 1):
            return None
        even = (dim for dim in range(1, len(size)) if size[dim] % shards == 0 and dim not in taken)
        return next((Shard(dim) for dim in even), None)

    return placement


class ColwiseParallel(parallel.ColwiseParallel):
    """Splits the outputs of nplex.nn.Linear: components as `Shard(1)`, each process has `a / p` rows of every block.

    With `W = sum_k kron(rule[k], components[k])` every process computes `y[i, a]` for all i and for its own a, with
    the whole rule. No numbers are sent forward; backward the gradients of the input, the rule and the bias are
    summed. Other layers are torch's own ColwiseParallel's matter.

    The local output is a slice of each of the n parts, not of the whole: `y.unflatten(-1, (n, -1))` is split over its
    last dimension. Elementwise functions between it and a RowwiseParallel of this module with the same n are right;
    heads of attention are whole where n p divides their number. **In front of a torch.nn.Linear, or of a layer of
    another n, take `output_layouts=Replicate()`:** nothing in a local tensor says in which order its numbers are.

    Args:
        input_layouts: as in torch's class, Replicate() by default.
        output_layouts: as in torch's class; by default Shard(-1), the slices.
        use_local_output: as in torch's class; a DTensor is in torch's order, which the slices are gathered for.

    Raises:
        ValueError: p does not divide a, or n does not divide out_features; or it is another layer of nplex.

    Examples:
        >>> from torch.distributed.tensor.parallel import parallelize_module
        >>> plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
        >>> def split(block: nn.Module, mesh: DeviceMesh) -> nn.Module:
        ...     return parallelize_module(block, mesh, plan)
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not _is_ours(module):
            return super()._apply(module, device_mesh)
        return _split(self, module, device_mesh, 1, _columns)


class RowwiseParallel(parallel.RowwiseParallel):
    """Splits the inputs of nplex.nn.Linear: components as `Shard(2)`, each process has `b / p` columns a block.

    Every process computes `sum_b` over its own b, with the whole rule; the outputs are summed, or summed and
    scattered with `output_layouts=Shard(1)`. A local input is what ColwiseParallel gives, see there. Other layers are
    torch's own RowwiseParallel's matter.

    Args:
        input_layouts: as in torch's class; by default Shard(-1), the slices that ColwiseParallel gives.
        output_layouts: as in torch's class, Replicate() by default.
        use_local_output: as in torch's class.

    Raises:
        ValueError: p does not divide b, or n does not divide in_features; or it is another layer of nplex.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not _is_ours(module):
            return super()._apply(module, device_mesh)
        return _split(self, module, device_mesh, 2, _rows)


def _is_ours(module: nn.Module) -> bool:
    if isinstance(module, Twin) and not isinstance(module, Linear):
        raise ValueError(
            f"tensor parallelism splits nplex.nn.Linear, got {type(module).__name__}: leave it out of the plan; "
            f"fully_shard takes it"
        )
    return isinstance(module, Linear)


def _split(style: Any, layer: Any, mesh: DeviceMesh, dim: int, forward: Local) -> nn.Module:
    """Distributes the components, replicates the rest, and lets the layer compute with its part."""
    n, blocks, parts = layer.rule.n, layer.components.shape[dim], mesh.size()
    name, width = ("out_features", layer.out_features) if dim == 1 else ("in_features", layer.in_features)
    if blocks % parts or width != n * blocks:
        raise ValueError(
            f"{name} = {width} must be a multiple of n = {n} times {parts} processes: take a width of "
            f"{n * parts * max(1, round(width / (n * parts)))}, or fewer processes"
        )

    def partition(_: str, module: nn.Module, device_mesh: DeviceMesh) -> None:
        if module is layer:
            old = layer.components
            new = distribute_tensor(old.detach(), device_mesh, [Shard(dim)], src_data_rank=style.src_data_rank)
            layer.register_parameter("components", nn.Parameter(new, requires_grad=old.requires_grad))

    distribute_module(layer, mesh, partition)
    layer.forward = partial(forward, style, layer, mesh)
    return layer


def _columns(style: Any, layer: Any, mesh: DeviceMesh, input: Tensor) -> Tensor:
    n, (layout,) = layer.rule.n, style.output_layouts
    bias = None
    if layer.bias is not None:
        bias = _whole(layer.bias, mesh).unflatten(0, (n, -1)).chunk(mesh.size(), 1)[mesh.get_local_rank()].flatten()
    x = _whole(input, mesh, style.input_layouts)
    features = layer.in_features, layer.out_features // mesh.size()
    y = product(x, _rule(layer, mesh), layer.components.to_local(), bias, features=features, method=layer.method)
    last = _is_last(layout, y)
    if last and style.use_local_output:
        return y
    parts = DTensor.from_local(y.unflatten(-1, (n, -1)), mesh, [Shard(y.ndim)], run_check=False)
    whole: Any = parts.redistribute(placements=[Replicate() if last else layout]).flatten(-2)
    whole = whole.redistribute(placements=[layout])
    return whole.to_local() if style.use_local_output else whole


def _rows(style: Any, layer: Any, mesh: DeviceMesh, input: Tensor) -> Tensor:
    x = input
    if isinstance(x, DTensor) or not _is_last(style.input_layouts[0], x):
        whole = _distributed(x, mesh, style.input_layouts)
        if _is_last(whole.placements[0], x):  # in torch's order, whose parts may not be whole components
            whole = whole.redistribute(placements=[Replicate()])
        parts: Any = whole.unflatten(-1, (layer.rule.n, -1))
        x = parts.redistribute(placements=[Shard(x.ndim)]).to_local().flatten(-2)
    bias = None if layer.bias is None else _whole(layer.bias, mesh) * (mesh.get_local_rank() == 0)  # summed once
    features = layer.in_features // mesh.size(), layer.out_features
    y = product(x, _rule(layer, mesh), layer.components.to_local(), bias, features=features, method=layer.method)
    made = DTensor.from_local(y, mesh, [Partial()], run_check=False).redistribute(placements=style.output_layouts)
    return made.to_local() if style.use_local_output else made


def _is_last(layout: Placement, tensor: Tensor) -> bool:
    return isinstance(layout, Shard) and layout.dim % tensor.ndim == tensor.ndim - 1


def _whole(tensor: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...] = (Replicate(),)) -> Tensor:
    """A local tensor that every process has in full; its gradient is the sum of all processes'."""
    whole = _distributed(tensor, mesh, placements).redistribute(placements=[Replicate()])
    return whole.to_local(grad_placements=[Partial()])


def _distributed(tensor: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> DTensor:
    return tensor if isinstance(tensor, DTensor) else DTensor.from_local(tensor, mesh, placements, run_check=False)


def _rule(layer: Linear, mesh: DeviceMesh) -> Tensor | BilinearAlgorithm:
    """The rule, a shared one too; the gradients of its factors are summed in one."""
    rule = layer.rule()
    if isinstance(rule, Tensor):
        return _whole(rule, mesh)
    return BilinearAlgorithm(*_whole(torch.stack([*rule]), mesh).unbind())
