"""Tensors of a run folder with their checksum; among them the training checkpoint, all that a run needs to go on."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nplex.files import fill, read_tensors, tensors_of, write_tensors
from nplex.lab.checked import CHECKSUM, damaged

MODEL = "model."
OPTIMIZER = "optimizer."


def write_sealed_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict | None = None) -> None:
    """Writes tensors and a header with the checksum of both."""
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, flat, (header or {}) | {CHECKSUM: _sum(flat, header or {})})


def read_sealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Reads what `write_sealed_tensors` wrote. A file without a checksum, as older versions wrote, is read too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or nplex did not write it.
    """
    tensors, header = read_tensors(path)
    found = header.pop(CHECKSUM, None)
    if found is not None and found != _sum(tensors, header):
        raise damaged(path, "its content is not what was written")
    return tensors, header


def fill_from(path: Path, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Loads the weights of a file into a model.

    Raises:
        ValueError: they belong to another model; names the file.
    """
    try:
        fill(model, weights)
    except (ValueError, RuntimeError) as error:
        message = f"{path} belongs to another model: {error}; take another folder, or --force to start anew"
        raise ValueError(message) from None


def write_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Writes all that a run needs to go on: weights, optimizer, random numbers, and a JSON state."""
    tensors = {MODEL + name: tensor for name, tensor in tensors_of(model)[0].items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{OPTIMIZER}{index}.{key}": value for key, value in values.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    write_sealed_tensors(path, tensors, state)


def read_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Puts a model, its optimizer and the random numbers where write_training left them; gives the state.

    Raises:
        ValueError: the file is damaged, or belongs to another model.
    """
    tensors, state = read_sealed_tensors(path)
    fill_from(path, model, {n.removeprefix(MODEL): tensor for n, tensor in tensors.items() if n.startswith(MODEL)})
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    values: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(OPTIMIZER):
            index, _, key = name.removeprefix(OPTIMIZER).partition(".")
            if not (index.isdecimal() and int(index) < len(parameters)):
                raise damaged(path, f"{name} belongs to no parameter")
            if tensor.shape not in (parameters[int(index)].shape, ()):
                raise damaged(path, f"{name} has the shape {tuple(tensor.shape)}, or an older version wrote it")
            values.setdefault(int(index), {})[key] = tensor
    if len({frozenset(entry) for entry in values.values()}) > 1:
        raise damaged(path, "a part of the optimizer is missing")
    try:
        optimizer.load_state_dict(optimizer.state_dict() | {"state": values})
        torch.set_rng_state(tensors["random.cpu"])
        if torch.cuda.is_available() and "random.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["random.cuda"])
    except KeyError as error:
        raise damaged(path, f"{error} is missing") from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise damaged(path, error) from None
    return state


def _sum(tensors: Mapping[str, Tensor], header: dict) -> int:
    found = zlib.crc32(json.dumps(header).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return found
