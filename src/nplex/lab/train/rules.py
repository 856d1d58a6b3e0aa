"""What rules were over training: the table of each, before the first step and after each epoch."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import as_table
from nplex.lab.checked import damaged
from nplex.lab.checkpoint import read_sealed_tensors, write_sealed_tensors
from nplex.lab.run_folder import RULES
from nplex.nn import LearnedRule


@torch.no_grad()
def tables(model: nn.Module) -> dict[str, Float[Tensor, "n n n"]]:
    """The table of each learned rule by its name in the model; a shared one once."""
    rules = {name: module for name, module in model.named_modules() if isinstance(module, LearnedRule)}
    return {name: as_table(rule()).float().cpu() for name, rule in rules.items()}


def record(folder: Path, model: nn.Module, epoch: int) -> None:
    """Adds the tables after an epoch, 0 for the first values, to rules.safetensors; what is there of later ones goes.

    A run that was killed after this and before its checkpoint comes here again, with the same tables.
    """
    found = tables(model)
    if not found:
        return
    before = read(folder)
    kept = {f"{at}/{name}": table for at, named in before.items() if at < epoch for name, table in named.items()}
    every = kept | {f"{epoch}/{name}": table.contiguous() for name, table in found.items()}
    write_sealed_tensors(folder / RULES, every)


def read(folder: Path) -> dict[int, dict[str, Float[Tensor, "n n n"]]]:
    """The tables of a run by epoch and name; none where the run has no learned rule.

    Raises:
        ValueError: the file is damaged.
    """
    path, found = folder / RULES, {}
    if not path.exists():
        return found
    tensors, _ = read_sealed_tensors(path)
    for key, table in tensors.items():
        epoch, slash, name = key.partition("/")
        if not (epoch.isdecimal() and slash):
            raise damaged(path, f"expected names such as 3/blocks.0.up.rule, got {key!r:.40}")
        if table.ndim != 3 or len(set(table.shape)) > 1 or not table.is_floating_point():
            raise damaged(path, f"{key} is {table.dtype} of shape {tuple(table.shape)}, expected an n x n x n table")
        found.setdefault(int(epoch), {})[name] = table
    return dict(sorted(found.items()))
