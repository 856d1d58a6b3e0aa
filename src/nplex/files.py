"""The one reader and writer of files: files are whole or absent, headers checked, models filled strictly."""

import json
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nplex.convert.apply import apply_
from nplex.convert.record import record, sizes_of
from nplex.model_state import fill, tensors_of

__all__ = [
    "save", "load", "replace_file", "write_text", "write_json", "read_json", "write_tensors", "read_tensors",
    "read_model", "tensors_of", "fill",
]  # fmt: skip

SEAL = "seal"
FORMAT = 2  # 1 had no "dense"
_KEYS = {"format", "version", "conversion", "tied"}
# What surrounds a module, and where that stands in it.
_WRAPPERS = {
    "OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module", "CheckpointWrapper": "_checkpoint_wrapped_module",
}  # fmt: skip
Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a model to one safetensors file: all tensors of its state, and its conversion in the header.

    Tied tensors and shared rules stand there once. The header also names the dense linear layers and embeddings, so
    that the command line can convert the file. `load` reads it; any reader of safetensors reads the tensors alone.

    Args:
        model: any model, with hypercomplex layers or without.
        path: of the file; folders are made.

    Raises:
        ValueError: the model or a part is wrapped, or a tensor is on the meta device, sharded, or not dense; or a
            rule cannot be described, see nplex.convert.record.
        OSError: the file cannot be written; names it.
    """
    for name, module in model.named_modules():
        if inner := _WRAPPERS.get(type(module).__name__):
            what = f"{name} in the model" if name else "the model"
            instead = f"put {name}.{inner} in its place while you save" if name else f"save model.{inner}"
            raise ValueError(f"{what} is wrapped ({type(module).__name__}); {instead}")
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

    The temporary name is unique, so two writers never share one; it is removed when writing fails. Of a link, the
    file that it leads to is written.

    Raises:
        OSError: the file cannot be written; names it.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.{os.urandom(4).hex()}.part")
    try:
        if target.exists() and not target.is_file():
            raise OSError("it is there and is not a file")
        target.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path} cannot be written: {error}") from None
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from None
    finally:
        with suppress(OSError):
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
    """Writes tensors to a safetensors file as `replace_file` does, with a JSON object in its header, and a seal."""
    flat = {name: tensor.detach().resolve_conj().resolve_neg().cpu() for name, tensor in tensors.items()}
    flat = {name: tensor.contiguous() for name, tensor in flat.items()}
    # One entry for both: safetensors writes several in any order, and the same model would be other bytes.
    sealed = {"nplex": json.dumps((header or {}) | {SEAL: _seal(header or {}, flat)})}
    replace_file(path, lambda part: save_file(flat, part, sealed))


def read_tensors(path: Path, *, foreign: bool = False, sealed: bool = False) -> tuple[dict[str, Tensor], dict]:
    """Reads a safetensors file: its tensors, which use the file's memory until they are copied, and its header.

    Args:
        path: of the file.
        foreign: whether a file that nplex did not write is read too; its header is empty.
        sealed: whether header, names, shapes and types must be as nplex wrote them: where no model is at hand that
            they are compared with. Numbers are not looked at; files of older versions have no seal.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or nplex did not write it; names it, and what to do.
    """
    header = _read_header(path, foreign=foreign)
    tensors = _read(path, lambda file: {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    seal = header.pop(SEAL, None)
    if sealed and seal is not None and seal != _seal(header, tensors):
        raise ValueError(
            f"{path} is not as nplex wrote it: its header, or a name, shape or type of a tensor is another; of a "
            f"model, nplex.load it and nplex.save that"
        )
    return tensors, header


def read_model(path: Path, *, sealed: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file that `save` wrote, under all their names, and its checked header; see `read_tensors`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, of a newer format, or `save` did not write it.
    """
    header = _read_header(path)
    header.pop(SEAL, None)
    number, tied = header.get("format"), header.get("tied")
    if type(number) is not int:
        raise ValueError(f"{path} was not written by nplex.save: its header has no format; take the file of a model")
    if number > FORMAT:
        raise ValueError(
            f"{path} was written by nplex {header.get('version')!s:.20} in format {number}, this nplex "
            f"({_version()}) reads up to {FORMAT}; pip install --upgrade nplex"
        )
    keys = _KEYS | ({"dense"} if number > 1 else set())
    if number < 1 or header.keys() != keys or not isinstance(tied, dict):
        raise ValueError(f"{path} is damaged: its header has {sorted(header)}, expected {sorted(keys)}")
    tensors, _ = read_tensors(path, sealed=sealed)
    for name, first in tied.items():
        if not isinstance(first, str) or name in tensors or first not in tensors:
            raise ValueError(f"{path} is damaged: {name!r} is tied to {first!r}; write it again with nplex.save")
    return tensors | {name: tensors[first] for name, first in tied.items()}, header


def _read_header(path: Path, *, foreign: bool = False) -> dict:
    """What nplex wrote into the header of a safetensors file; no tensor is read."""
    text = _read(path, lambda file: (file.metadata() or {}).get("nplex"))
    if text is None and foreign:
        return {}
    header = _read(path, lambda _: json.loads(text or "null"))
    if not isinstance(header, dict):
        raise ValueError(
            f"{path} was not written by nplex: its header does not say which layers its tensors belong to; "
            f"load them into their model (safetensors.torch.load_file, model.load_state_dict) and nplex.save that"
        )
    return header


def _read(path: Path, read: Callable[[Any], Any]) -> Any:
    """What a function takes from an open safetensors file, or an error that names it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            return read(file)
    except (SafetensorError, ValueError, RecursionError, OverflowError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}); write it again or take another"
        ) from None
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error}") from None


def _seal(header: dict, tensors: Mapping[str, Tensor]) -> int:
    """A checksum of a header, and of the names, types and shapes of tensors."""
    names = [f"{name} {tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())]
    return zlib.crc32("\n".join([json.dumps(header), *names]).encode())


def _version() -> str:
    return getattr(sys.modules["nplex"], "__version__", "unknown")
