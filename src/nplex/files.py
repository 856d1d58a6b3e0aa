"""The one reader and writer of files: files are whole or absent, headers checked, models filled strictly."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nplex.convert.apply import apply_
from nplex.convert.record import record, sizes_of

__all__ = [
    "save", "load", "replace_file", "write_text", "write_json", "read_json", "write_tensors", "read_tensors",
    "read_model", "tensors_of", "fill",
]  # fmt: skip

FORMAT = 2  # 1 had no "dense"
_KEYS = {"format", "version", "conversion", "tied"}
_WRAPPERS = {"OptimizedModule", "DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"}
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a model to one safetensors file: all tensors of its state, and its conversion in the header.

    Tied tensors and shared rules stand there once. The header also names the dense linear layers and embeddings, so
    that the command line can convert the file. `load` reads it; any reader of safetensors reads the tensors alone.

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
    tensors, tied = tensors_of(model)
    dense = {
        name: {"kind": type(module).__name__, "sizes": sizes_of(module)}
        for name, module in model.named_modules(remove_duplicate=False)
        if type(module) in (nn.Linear, nn.Embedding) and "weight" in module._parameters
    }
    header = {"format": FORMAT, "version": _version(), "conversion": record(model), "tied": tied, "dense": dense}
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
    tensors, header = read_model(Path(path))
    try:
        take_back = apply_(model, header["conversion"])
        try:
            fill(model, tensors)
        except BaseException:
            take_back()
            raise
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit this {type(model).__name__}: {error}") from None
    return model


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes `NAME.XXXXXXXX.part` beside a file and renames it: a reader sees the old file or the new one.

    The temporary name is unique, so two writers never share one; it is removed when writing fails.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text by `replace_file`."""
    replace_file(path, lambda part: part.write_text(text, "utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON, as `replace_file` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
        ValueError: the file holds no JSON object; names it.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, expected JSON: {error}; delete it or take another folder") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged, expected a JSON object, got a {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict | None = None) -> None:
    """Writes tensors to a safetensors file as `replace_file` does, with a JSON object in its header."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda part: save_file(flat, part, {"nplex": json.dumps(header or {})}))


def read_tensors(path: Path, *, foreign: bool = False) -> tuple[dict[str, Tensor], dict]:
    """Reads a safetensors file: its tensors, which use the file's memory until they are copied, and its header.

    Args:
        path: of the file.
        foreign: whether a file that nplex did not write is read too; its header is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or nplex did not write it; names it, and what to do.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("nplex")
            header = None if text is None else json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}); write it again or take another"
        ) from None
    if header is None and foreign:
        return tensors, {}
    if not isinstance(header, dict):
        raise ValueError(
            f"{path} was not written by nplex: its header does not say which layers its tensors belong to; "
            f"load them into their model (safetensors.torch.load_file, model.load_state_dict) and nplex.save that"
        )
    return tensors, header


def read_model(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file that `save` wrote, under all their names, and its checked header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a newer format, or `save` did not write it.
    """
    tensors, header = read_tensors(path)
    number, tied = header.get("format"), header.get("tied")
    if not isinstance(number, int):
        raise ValueError(f"{path} was not written by nplex.save: its header has no format; take the file of a model")
    if number > FORMAT:
        raise ValueError(
            f"{path} was written by nplex {header.get('version')!s:.20} in format {number}, this nplex "
            f"({_version()}) reads up to {FORMAT}; pip install --upgrade nplex"
        )
    keys = _KEYS | ({"dense"} if number > 1 else set())
    if number < 1 or header.keys() != keys or not isinstance(tied, dict):
        raise ValueError(f"{path} is damaged: its header has {sorted(header)}, expected {sorted(keys)}")
    for name, first in tied.items():
        if not isinstance(first, str) or name in tensors or first not in tensors:
            raise ValueError(f"{path} is damaged: {name!r} is tied to {first!r}; write it again with nplex.save")
    return tensors | {name: tensors[first] for name, first in tied.items()}, header


def tensors_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state of a model as a file holds it: tied tensors once, and their other names with the first.

    Raises:
        ValueError: a file cannot hold one of them; says why.
    """
    tensors, tied, first = {}, {}, {}
    storages: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = _writable(name, value)
        if (memory := _memory(value)) in first:
            tied[name] = first[memory]
            continue
        first[memory] = name
        storage = tensor.untyped_storage().data_ptr()  # a file must not hold overlapping parts of one storage
        tensors[name] = tensor.clone() if storage in storages else tensor
        storages.add(storage)
    return tensors, tied


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads tensors into a model of the same names and shapes; of tied ones, one name is enough.

    Tensors take the device and type of the model's own. Those on the meta device are replaced.

    Raises:
        ValueError: a tensor is missing, over, or of another shape or kind; or one that no file holds is on meta.
    """
    present = model.state_dict(keep_vars=True)
    memories = {name: _memory(own) for name, own in present.items()}
    filled = {memories[name] for name in tensors if name in memories}
    for names, problem in (
        ([name for name in present if memories[name] not in filled], "is missing in it"),
        (tensors.keys() - present, "is not in the model"),
    ):
        if names:
            raise ValueError(f"{min(names)} {problem}" + f", and {len(names) - 1} more" * (len(names) > 1))
    values, first = {}, {}
    for name, memory in ((name, memories[name]) for name in present if name in tensors):
        own, value = present[name], tensors[name]
        if own.shape != value.shape or _kind(own) != _kind(value):
            raise ValueError(f"{name} is {_summary(value)} in it, and {_summary(own)} in the model")
        if memory in first:
            other = tensors[first[memory]]
            if value is not other and not torch.equal(value, other):
                raise ValueError(f"{name} and {first[memory]} are tied in the model, but differ in it")
            continue
        first[memory] = name
        kept = value.to("cpu" if own.is_meta else own.device, own.dtype, copy=own.is_meta)
        values[name] = (
            nn.Parameter(kept, own.requires_grad) if own.is_meta and isinstance(own, nn.Parameter) else kept
        )
    values = {name: values[first[memory]] for name, memory in memories.items()}
    model.load_state_dict(values, assign=any(own.is_meta for own in present.values()))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device and no file holds it; make the model on the CPU")


def _memory(tensor: Tensor) -> tuple:
    """Where a tensor's numbers lie: tied tensors have one place."""
    if not isinstance(tensor, Tensor) or tensor.is_meta or is_lazy(tensor) or not tensor.numel():
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


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
    return tensor.detach()


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _summary(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _version() -> str:
    return getattr(sys.modules["nplex"], "__version__", "unknown")
