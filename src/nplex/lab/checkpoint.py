"""The training checkpoint: weights, optimizer, random numbers and state of a run in one file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from nplex.files import fill, read_tensors, tensors_of, write_tensors

MODEL = "model."
OPTIMIZER = "optimizer."


def write_training(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Writes all that a run needs to go on: weights, optimizer, random numbers, and a JSON state."""
    tensors = {MODEL + name: tensor for name, tensor in tensors_of(model)[0].items()}
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
    try:
        fill(model, weights)
    except (ValueError, RuntimeError) as error:
        message = f"{path} belongs to another model: {error}; take another folder, or --force to start anew"
        raise ValueError(message) from None
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


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged or was not written by nplex ({why}); delete it to start anew")
