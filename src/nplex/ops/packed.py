"""Weights in the order in which a kernel for few rows reads them.

MKL rearranges the weights of every matmul with several rows as it goes, so that few rows cost twice the bytes.
oneDNN takes weights that were rearranged before. torch has no public name for that; what stands here is what its own
compiler uses for frozen models, tried once a process, and where it does not work weights stay as they are.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nplex.ops.eager import autocast_type

# Below this size a call of oneDNN costs more than it saves.
LEAST_BYTES = 2**20


def pack(weight: Float[Tensor, "d_out d_in"], rows: int) -> Tensor:
    """The weight in oneDNN's order for about so many rows, where that is possible and worth it, else as it is.

    A packed weight is opaque, only `linear` can read it, and has no gradient: with gradients on nothing is packed.
    """
    fits = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
    if not fits or torch.is_grad_enabled() or autocast_type(weight) is not None:
        return weight
    if not is_worth_it(weight.numel(), weight.element_size()) or not _works():
        return weight
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)


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
    y = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return y if rows == y.shape[0] else y[:rows]


@functools.cache
def _works() -> bool:
    """Whether this torch on this processor has the operators, and they give what they should."""
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight = torch.arange(6.0).reshape(2, 3), torch.arange(12.0).reshape(4, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 2)
        return torch.equal(torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""), x @ weight.mT)
    except (AttributeError, RuntimeError, TypeError):
        return False
