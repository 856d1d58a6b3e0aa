"""Files: safetensors and JSON, written beside and renamed, so that a file is whole or not there."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MODEL = "model."
OPTIMIZER = "optimizer."


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text."""
    replace_file(path, lambda part: part.write_text(text, "utf-8"))


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict:
    """Reads a JSON object.

    Raises:
        ValueError: the file is no JSON object; names it.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged, expected JSON: {error}; delete it or take another folder") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged, expected a JSON object, got a {type(value).__name__}")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict | None = None) -> None:
    """Writes tensors to a safetensors file, with a JSON object in its header."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda part: save_file(flat, part, {"nplex": json.dumps(header or {})}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Reads the tensors and the header's JSON object of a file that write_tensors wrote.

    Raises:
        ValueError: the file is damaged or not ours; names it.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["nplex"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise _damaged(path, error) from None
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is {header!r}")
    return tensors, header


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state with tied weights once, as safetensors wants it."""
    found, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if (place := (tensor.data_ptr(), tensor.shape)) not in seen or not tensor.numel():
            found[name] = tensor
            seen.add(place)
    return found


def write_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Writes all that a run needs to go on: weights, optimizer, random numbers, and a JSON state."""
    tensors = {MODEL + name: tensor for name, tensor in weights_of(model).items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{key}": value for key, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    write_tensors(path, tensors, state)


def read_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Puts a model, its optimizer and the random numbers where write_training left them; gives the state.

    Raises:
        ValueError: the file is damaged, or belongs to another model.
    """
    tensors, state = read_tensors(path)
    weights = {name.removeprefix(MODEL): tensor for name, tensor in tensors.items() if name.startswith(MODEL)}
    _load(path, model, weights)
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition(".")
            values.setdefault(int(index), {})[key] = tensor
    try:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
        torch.set_rng_state(tensors["random.cpu"])
    except (KeyError, ValueError) as error:
        raise _damaged(path, f"{error} is missing") from None
    if len({frozenset(entry) for entry in values.values()}) > 1:
        raise _damaged(path, "a part of the optimizer is missing")
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return state


def _load(path: Path, model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads weights in which tied ones stand once.

    Raises:
        ValueError: they belong to another model.
    """
    present = model.state_dict()
    held = {(present[name].data_ptr(), present[name].shape) for name in weights if name in present}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(_foreign(path, str(error).splitlines()[-1].strip())) from None
    missing = [name for name in missing if (present[name].data_ptr(), present[name].shape) not in held]
    if missing or unexpected:
        first = f"Missing key {missing[0]}" if missing else f"Unexpected key {unexpected[0]}"
        raise ValueError(_foreign(path, first))


def _foreign(path: Path, why: str) -> str:
    return f"{path} belongs to another model: {why}; take another folder, or --force to start anew"


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged or was not written by nplex ({why}); delete it to start anew")


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside and renames: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)
