"""Low rank with a budget: the rank of each layer of a model by the error of its outputs."""

import heapq
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn, optim

from nplex.convert.calibration import observe
from nplex.convert.exchange import check_optimizer
from nplex.convert.report import Report
from nplex.convert.spec import LOW_RANK, Conversion
from nplex.convert.survey import survey
from nplex.convert.swap import changing, prepare, put_in
from nplex.convert.twins import untransposed
from nplex.convert.where import Where, sensible
from nplex.nn.nearest import Inputs
from nplex.nn.truncated import spectrum


def compress_(
    model: nn.Module,
    *,
    keep: float = 0.5,
    calibration: Iterable[Any],
    where: Where | None = sensible,
    optimizer: optim.Optimizer | None = None,
) -> Report:
    """Replaces linear layers by two factors each, in place, with ranks that lose least of all outputs together.

    Without training no rule of the same size came nearer on average than low rank (docs: Shrink a pretrained model),
    so that all layers get it. Each next rank goes to the layer whose relative squared error of outputs falls most for
    its parameters, until the budget is spent. A layer that calibration did not run gets its share, `keep`.

    Args:
        model: it is changed; nothing is when an error is raised.
        keep: the share of the weights of these layers that is kept, between 0 and 1.
        calibration: batches of what the model takes, as in convert_.
        where: which layers, as in convert_; by default those that are sensible.
        optimizer: as in convert_.

    Raises:
        TypeError: the model is not a module, the batches are none, or the optimizer cannot be changed.
        ValueError: keep is not between 0 and 1, no layer can be replaced, or calibration fails as in convert_.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
        >>> report = compress_(model, keep=0.5, calibration=[torch.randn(512, 64)])
        >>> report.total_after < 0.51 * report.total_before
        True
    """
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep < 1:
        raise ValueError(f"keep is the share of the weights that is kept, between 0 and 1; got {keep!r}")
    check_optimizer(optimizer)
    found = survey(model, Conversion(f"{LOW_RANK}1", where, weights="nearest"))
    if not found.choices:
        raise ValueError(f"nothing to compress in {type(model).__name__}:\n{found.report}")
    layers = changing(model, found)
    inputs = observe(model, layers, calibration)
    ranks = _ranks({name: untransposed(layer) for name, layer in layers.items()}, inputs, keep)
    rules: dict[str, str | None] = {_escaped(name): f"{LOW_RANK}{rank}" for name, rank in ranks.items()}
    found = survey(model, Conversion(rules, where, weights="nearest"))
    return put_in(model, found, prepare(model, found, "nearest", inputs), optimizer)


def _ranks(layers: Mapping[str, Any], inputs: Mapping[str, Inputs], keep: float) -> dict[str, int]:
    """The rank of each layer, 1 at least and below that of a weight's size."""
    each = {name: sum(layer.weight.shape) for name, layer in layers.items()}
    most = {name: (layer.weight.numel() - 1) // each[name] for name, layer in layers.items()}
    ranks = {name: 1 if name in inputs else max(1, int(keep * most[name])) for name in layers}
    left = sum(keep * layer.weight.numel() - each[name] * ranks[name] for name, layer in layers.items())
    gains = {}
    for name in inputs:
        squares = spectrum(layers[name], *inputs[name]["weight"])
        gains[name] = (squares / squares.sum().clamp_min(1e-300) / each[name]).tolist()
    heap = [(-own[1], name) for name, own in gains.items() if most[name] > 1]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        if each[name] > left:
            continue
        ranks[name] += 1
        left -= each[name]
        if ranks[name] < most[name]:
            heapq.heappush(heap, (-gains[name][ranks[name]], name))
    return ranks


def _escaped(name: str) -> str:
    """A pattern that matches this name alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
