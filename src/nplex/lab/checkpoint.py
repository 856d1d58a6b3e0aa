"""The training checkpoint: weights, optimizer, random numbers and state of a run in one file."""

from pathlib import Path

import torch
from torch import Tensor, nn

from nplex.files import (  # noqa: F401 - programs still import these from here
    read_json,
    read_tensors,
    replace_file,
    write_json,
    write_tensors,
    write_text,
)

MODEL = "model."
OPTIMIZER = "optimizer."


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The state with tied weights once, as safetensors wants it."""
    found, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if (memory := (tensor.data_ptr(), tensor.shape)) not in seen or not tensor.numel():
            found[name] = tensor
            seen.add(memory)
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
    tied = {(present[name].data_ptr(), present[name].shape) for name in weights if name in present}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(_foreign(path, str(error).splitlines()[-1].strip())) from None
    missing = [name for name in missing if (present[name].data_ptr(), present[name].shape) not in tied]
    if missing or unexpected:
        first = f"Missing key {missing[0]}" if missing else f"Unexpected key {unexpected[0]}"
        raise ValueError(_foreign(path, first))


def _foreign(path: Path, why: str) -> str:
    return f"{path} belongs to another model: {why}; take another folder, or --force to start anew"


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is damaged or was not written by nplex ({why}); delete it to start anew")
