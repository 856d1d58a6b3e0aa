"""A model's state as a file holds it: tied tensors once, and put back strictly."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["tensors_of", "check_fit", "fill"]


def tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a model as a file holds it: tied tensors once, and their other names with the first.

    Raises:
        ValueError: a file cannot hold one of them; says why.
    """
    tensors, tied, first = {}, {}, {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = _writable(name, value)
        if (memory := _memory(tensor)) in first:
            tied[name] = first[memory]
            continue
        first[memory] = name
        storage = tensor.untyped_storage().data_ptr()  # a file must not hold overlapping parts of one storage
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors, tied


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Compares tensors with a model: the same names, of tied ones at least one, shapes and kinds of numbers.

    Raises:
        ValueError: a tensor is missing, over, or of another shape or kind.
    """
    present = model.state_dict(keep_vars=True)
    filled = {_memory(present[name]) for name in tensors if name in present}
    for names, problem in (
        ([name for name, own in present.items() if _memory(own) not in filled], "is missing in it"),
        (tensors.keys() - present, "is not in the model"),
    ):
        if names:
            hint = "; add its adapters first, as nplex.adapters.add_ did" * (".adapters." in min(names))
            raise ValueError(f"{min(names)} {problem}" + f", and {len(names) - 1} more" * (len(names) > 1) + hint)
    for name, own in present.items():
        value = tensors.get(name, own)
        if own.shape != value.shape or _kind(own) != _kind(value):
            raise ValueError(f"{name} is {_summary(value)} in it, and {_summary(own)} in the model")


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors into a model that they fit; of tied ones, one name is enough.

    Tensors take the device and type of the model's own. Those on the meta device are replaced.

    Raises:
        ValueError: they do not fit, see check_fit; or one that no file holds is on meta.
    """
    check_fit(model, tensors)
    present = model.state_dict(keep_vars=True)
    memories = {name: _memory(own) for name, own in present.items()}
    assign = any(own.is_meta for own in present.values())
    values, first = {}, {}
    for name, memory in ((name, memories[name]) for name in present if name in tensors):
        own, value = present[name], tensors[name]
        if memory in first:
            other = tensors[first[memory]]
            if value is not other and not torch.equal(value, other):
                raise ValueError(f"{name} and {first[memory]} are tied in the model, but differ in it")
            continue
        first[memory] = name
        kept = value.to("cpu" if own.is_meta else own.device, own.dtype, copy=assign)
        values[name] = (
            nn.Parameter(kept, own.requires_grad) if own.is_meta and isinstance(own, nn.Parameter) else kept
        )
    values = {name: values[first[memory]] for name, memory in memories.items()}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and _overlaps(buffer):
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
    model.load_state_dict(values, assign=assign)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and no file holds it; make the model on the CPU")


def _memory(tensor: Tensor) -> tuple:
    """Where a tensor's numbers lie: tied tensors have one place."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or is_lazy(tensor) or not tensor.numel():
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _overlaps(tensor: Tensor) -> bool:
    """Whether several numbers of an expanded tensor lie at one place: torch refuses to write there."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return False
    return any(size > 1 and not step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _writable(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, a file holds tensors only")
    if is_lazy(tensor):
        raise ValueError(f"{name} is not initialised yet: run one batch first")
    if tensor.is_meta:
        raise ValueError(f"{name} is on the meta device and has no numbers: load or initialise it first")
    if hasattr(tensor, "full_tensor"):
        raise ValueError(f"{name} is sharded: gather it first, as torch.distributed.checkpoint.state_dict does")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} is {tensor.layout}, a file holds dense tensors only")
    return tensor.detach().resolve_conj().resolve_neg()


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _summary(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
