"""A model in one file: its weights, and which of its layers are hypercomplex with which rules."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nplex.convert.apply import apply_
from nplex.convert.record import record
from nplex.lab.checkpoint import write_tensors

FORMAT = 1
_KEYS = {"format", "version", "conversion", "tied"}
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a model to one safetensors file: all tensors of its state, and its conversion in the header.

    Tied tensors and shared rules stand there once. The file is written beside and renamed, so that it is whole or
    not there. `load` reads it; the weights alone, any reader of safetensors.

    Args:
        model: any model, with hypercomplex layers or without.
        path: of the file; folders are made.

    Raises:
        ValueError: the model is wrapped, or a tensor is on the meta device, sharded, or not dense; or a rule cannot
            be described, see nplex.convert.record.
    """
    for attribute in ("_orig_mod", "module"):
        if type(model).__name__ in _WRAPPERS and hasattr(model, attribute):
            raise ValueError(f"the model is wrapped ({type(model).__name__}); save model.{attribute}")
    header = {"format": FORMAT, "version": _version(), "conversion": record(model), "tied": {}}
    tensors: dict[str, Tensor] = {}
    places: dict[tuple, str] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        tensor = _writable(name, tensor)
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and place in places:
            header["tied"][name] = places[place]
            continue
        places[place] = name
        storage = tensor.untyped_storage().data_ptr()  # a file must not hold overlapping parts of one storage
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    write_tensors(Path(path), tensors, header)


def load(path: str | Path, model: Model) -> Model:
    """Reads a model that `save` wrote: converts it as it was, then loads all its tensors, none missing, none over.

    Device and type of the model's tensors are kept; a model made on the meta device gets its tensors on the CPU, in
    its own types. No code of the file is run.

    Args:
        path: of the file.
        model: as its class makes it, dense, or converted alike already; it is changed. When an error is raised its
            layers are the old ones.

    Returns:
        The same model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of a newer format, not written by `save`, or belongs to another model; names
            the file, and what to do.

    Examples:
        >>> import tempfile
        >>> from nplex import convert_
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        >>> print(convert_(model, 4).rows[0].now)
        Linear(64, 64, rule=4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, Path(folder) / "model.safetensors")
        ...     again = load(Path(folder) / "model.safetensors", nn.Sequential(nn.Linear(64, 64), nn.ReLU()))
        >>> bool((again[0].weight == model[0].weight).all())
        True
    """
    path = Path(path)
    header, tensors = _read(path)
    for name, first in header["tied"].items():
        if name in tensors or first not in tensors:
            raise ValueError(f"{path} is damaged: {name!r} is tied to {first!r}; write it anew with nplex.save")
    tensors |= {name: tensors[first] for name, first in header["tied"].items()}
    try:
        take_back = apply_(model, header["conversion"])
        try:
            _fill(model, tensors)
        except BaseException:
            take_back()
            raise
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}") from None
    return model


_WRAPPERS = {"OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header, checked, and the tensors of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a newer format, or not ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; nplex.save(model, {str(path)!r}) writes one")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("nplex")
            header = None if text is None else json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file ({error}); write it anew with nplex.save"
        ) from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ValueError(
            f"{path} was not written by nplex.save: its header has no format; take weights from elsewhere with "
            f"safetensors.torch.load_file and model.load_state_dict"
        )
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by nplex {header.get('version')!s:.20} in format {header['format']}, this nplex "
            f"({_version()}) reads up to {FORMAT}; pip install --upgrade nplex"
        )
    if header["format"] < 1 or header.keys() != _KEYS or not isinstance(header["tied"], dict):
        raise ValueError(f"{path} is damaged: its header has {sorted(header)}, expected {sorted(_KEYS)}")
    if not all(isinstance(first, str) for first in header["tied"].values()):
        raise ValueError(f"{path} is damaged: tied must map names to names")
    return header, tensors


def _fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads tensors into a model of the same names and shapes; on the meta device they take the place of its own.

    Raises:
        ValueError: a tensor is missing, over, or of another shape or kind; one that no file holds is on meta.
    """
    present = model.state_dict(keep_vars=True)
    for names, problem in (
        (present.keys() - tensors, "is missing in it"),
        (tensors.keys() - present, "is not in the model"),
    ):
        if names:
            raise ValueError(f"{min(names)} {problem}" + f", and {len(names) - 1} more" * (len(names) > 1))
    placed: dict[int, tuple[str, Tensor]] = {}
    values = {}
    for name, own in present.items():
        value = tensors[name]
        if own.shape != value.shape or _kind(own) != _kind(value):
            raise ValueError(f"{name} is {_told(value)} in it, and {_told(own)} in the model")
        if id(own) in placed:  # tied in the model: one tensor for all its names
            first, kept = placed[id(own)]
            if value is not tensors[first] and not torch.equal(value, tensors[first]):
                raise ValueError(f"{name} and {first} are tied in the model, but differ in it")
            values[name] = kept
            continue
        device = torch.device("cpu") if own.is_meta else own.device
        kept = value.to(device, own.dtype, copy=own.is_meta)
        if own.is_meta and isinstance(own, nn.Parameter):
            kept = nn.Parameter(kept, own.requires_grad)
        values[name], placed[id(own)] = kept, (name, kept)
    model.load_state_dict(values, assign=any(own.is_meta for own in present.values()))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and no file holds it; make the model on the CPU")


def _writable(name: str, tensor: Any) -> Tensor:
    """A tensor that a file can hold.

    Raises:
        ValueError: it is none; says why.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, a file holds tensors only")
    why = {
        "is not initialised yet: run one batch first": is_lazy(tensor),
        "is on the meta device and has no numbers: load or initialise it first": tensor.is_meta,
        "is sharded: gather it first, as torch.distributed.checkpoint.state_dict does": hasattr(
            tensor, "full_tensor"
        ),
        f"is {tensor.layout}, a file holds dense tensors only": tensor.layout is not torch.strided,
    }
    for reason, holds in why.items():
        if holds:
            raise ValueError(f"{name} {reason}")
    return tensor.detach()


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Whether it has real or complex or whole numbers: other types of a kind are converted."""
    return tensor.is_floating_point(), tensor.is_complex()


def _told(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _version() -> str:
    try:
        return importlib.metadata.version("nplex")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
