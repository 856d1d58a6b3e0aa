"""What surrounds a call: whether it may write into buffers and bring its own gradients, and autocast."""

import contextlib

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def is_eager(*tensors: Tensor | None) -> bool:
    """True for ordinary tensors in an ordinary call.

    False while torch.compile, export, jit.trace, torch.func's transforms or forward-mode derivatives look on, and
    for subclasses of Tensor (FakeTensor, DTensor, ...): what is written there must be differentiable as it stands.
    """
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)


def autocast_type(tensor: Tensor) -> torch.dtype | None:
    """The type that autocast gives a matmul of this tensor, or None where it is off or unknown to the device."""
    device = tensor.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast, for what torch's layer does in the type of its weight."""
    if autocast_type(tensor) is None:
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
