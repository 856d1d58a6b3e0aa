"""Weights in the order in which a kernel for few rows reads them.

MKL rearranges the weights of every matmul with several rows as it goes, so that few rows cost twice the bytes.
oneDNN takes weights that were rearranged before. torch has no public name for that; nplex.ops.tracing holds what its
own compiler uses for frozen models. It is tried once a process and type; where it does not work weights stay as they
are.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.ops import tracing

# Below this size a call of oneDNN costs more than it saves.
LEAST_BYTES = 2**20


def pack(weight: Float[Tensor, "d_out d_in"], rows: int) -> Tensor:
    """The weight in oneDNN's order for about so many rows, where that is possible and worth it, else as it is.

    A packed weight is opaque, only `linear` can read it, and has no gradient: with gradients on nothing is packed.
    """
    fits = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if not fits or torch.is_grad_enabled() or tracing.autocast_type(weight) is not None:
        return weight
    if not is_worth_it(weight.numel(), weight.element_size()) or not tracing.onednn_packs(weight.dtype):
        return weight
    return tracing.onednn_pack(weight.contiguous(), rows)


def is_worth_it(numbers: int, element_size: int) -> bool:
    """Whether a weight of so many numbers is read faster when packed; of 2 bytes a number every one."""
    return element_size == 2 or (element_size == 4 and numbers * element_size >= LEAST_BYTES)


def linear(x: Float[Tensor, "rows d_in"], weight: Tensor) -> Float[Tensor, "rows d_out"]:
    """`x weight^T`, for a weight as it is or packed."""
    if not weight.is_mkldnn:
        return torch.mm(x, weight.mT)
    rows = x.shape[0]
    if rows in (2, 3):
        x = F.pad(x, (0, 0, 0, 4 - rows))  # oneDNN reads weights for four rows faster than for two
    y = tracing.onednn_linear(x, weight)
    return y if rows == y.shape[0] else y[:rows]
