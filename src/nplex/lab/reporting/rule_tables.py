"""The rules over training, small enough for a page, and which algebras they are."""

import base64
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import identify
from nplex.lab.reporting.read import FinishedRun

MOST_BYTES = 900_000  # of all tables of a page, as text
LEVELS = 32_000  # numbers are whole multiples of the largest, divided by this
LARGEST, MOST = 4, 8  # of larger rules, and of more layers of a run, identifying takes longer than a page should


def packed(runs: list[FinishedRun]) -> list[dict]:
    """For each rule's first run its tables, as 16-bit numbers in base64; epochs are left out where they are too many.

    Each layer is `{name, n, scale, epochs, numbers}`: entry (epoch, k, a, b) is `number * scale`, row by row.
    """
    first = {run.rule: run for run in reversed(runs) if run.tables}
    chosen = [run for run in runs if first.get(run.rule) is run]
    return [{"run": run.label, "layers": _layers(run, MOST_BYTES // max(1, len(chosen)))} for run in chosen]


def _layers(run: FinishedRun, room: int) -> list[dict]:
    """Of one run, in so many bytes; the first and the last epoch are always there, of as many layers as fit."""
    first = next(iter(run.tables.values()))
    sizes = torch.tensor([8 * table.numel() / 3 for table in first.values()]).cumsum(0)
    shown = max(1, int((2 * sizes <= room).sum()))
    epochs = torch.tensor([epoch for epoch, tables in run.tables.items() if first.keys() <= tables.keys()])
    most = min(len(epochs), max(2, int(room / sizes[shown - 1])))
    chosen = epochs[torch.linspace(0, len(epochs) - 1, most).round().long()].tolist()  # evenly
    return [_layer(name, chosen, torch.stack([run.tables[at][name] for at in chosen])) for name in [*first][:shown]]


def _layer(name: str, epochs: list[int], tables: Float[Tensor, "epochs n n n"]) -> dict:
    scale = float(tables.abs().max()) / LEVELS or 1.0
    numbers = (tables / scale).round().to(torch.int16).flatten()
    text = base64.b64encode(numbers.numpy().astype("<i2").tobytes()).decode()
    return {"name": name, "n": tables.shape[-1], "scale": scale, "epochs": epochs, "numbers": text}


def identify_rules(runs: list[FinishedRun], shown: list[dict], report: Callable[[int, int], None]) -> None:
    """Adds to layers of `packed` their verdicts before the first step and at the end, as `identified`.

    Those of each run's first layers with a rule of n = 4 or less; `nplex rule identify` tells of all.

    Args:
        runs: whose tables they are.
        shown: what `packed` gave.
        report: called after each layer with how many are done, and how many there are.
    """
    labelled = {run.label: run for run in runs}
    small = [[layer for layer in each["layers"] if layer["n"] <= LARGEST][:MOST] for each in shown]
    layers = [(labelled[each["run"]], layer) for each, few in zip(shown, small, strict=True) for layer in few]
    for done, (run, layer) in enumerate(layers, 1):
        first, last = (run.tables[layer["epochs"][at]][layer["name"]] for at in (0, -1))
        layer["identified"] = [identify(table).verdict for table in (first, last)]
        report(done, len(layers))
