"""Whether a forward uses what a model holds: seen by running it, where reading its attributes cannot tell."""

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nplex.convert.references import walk
from nplex.convert.report import label, text_table
from nplex.convert.twins import is_layer
from nplex.nn import missing_rules
from nplex.nn.sharing import RuleUser
from nplex.ops.tracing import OperandWatch


@dataclass(frozen=True)
class CheckRow:
    """One layer of ours.

    Attributes:
        name: its full name.
        layer: what it is.
        used: whether an operation of the forward took one of its components or its bias.
        without_gradient: its trained parameters that get no gradient from the outputs, those of its rule too.
        registered: whether its rule is registered in the model.
    """

    name: str
    layer: str
    used: bool
    without_gradient: tuple[str, ...]
    registered: bool

    @property
    def problem(self) -> str:
        """What is wrong with it, or nothing."""
        if not self.registered:
            return "its shared rule is registered nowhere in the model: see nplex.nn.missing_rules"
        if not self.used:
            return "not used by this forward: what calls it may still hold the layer from before the conversion"
        return f"no gradient for {', '.join(self.without_gradient)}" * bool(self.without_gradient)


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; true if no layer has a problem.

    Attributes:
        rows: one for each layer of ours.
        outside: sizes of parameters that the forward uses and the model does not hold.
    """

    rows: tuple[CheckRow, ...]
    outside: tuple[tuple[int, ...], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every layer is used, trained and registered."""
        return not any(row.problem for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        wrong = [(row.name, row.layer, row.problem) for row in self.rows if row.problem]
        lines = text_table([("layer", "is", ""), *wrong], "<<<") if wrong else []
        if self.outside:
            sizes = ", ".join("x".join(map(str, size)) or "1" for size in self.outside)
            lines.append(f"parameters that the forward uses and the model does not hold: {sizes}")
        return "\n".join([*lines, f"{len(self.rows) - len(wrong)} of {len(self.rows)} layers are right"])


def check(model: nn.Module, example: Any) -> CheckReport:
    """Runs one forward and says which converted layers, and deltas of the active adapter, it does not use or train.

    For models that hold their layers where a conversion cannot look: in local variables of functions, globals,
    iterators. The forward runs with gradients, in the modes the model is in. Numbers, gradients, buffers and the
    states of random numbers are afterwards as before. A layer that this example does not need, as an expert that gets
    no token, counts as not used. Leave `nplex.nn.cached` before: there weights are not built anew.

    Args:
        model: with layers of nplex.
        example: what its forward takes: a tensor, a tuple or list of arguments, or a mapping of names to them.

    Raises:
        TypeError: the model is not a module.
        ValueError: the model has no layer of nplex.

    Examples:
        >>> from nplex import nn as nx
        >>> model = nn.Sequential(nx.Linear(8, 8, rule=2), nn.ReLU(), nx.Linear(8, 4, rule=2))
        >>> print(check(model, torch.randn(3, 8)))
        2 of 2 layers are right
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {name: module for name, module in model.named_modules() if is_layer(module) or _is_trained_delta(module)}
    if not layers:
        raise ValueError(f"nothing to check in {type(model).__name__}: it has no layer of nplex; see nplex.convert_")
    numbers = {name: _numbers(layer) for name, layer in layers.items()}
    seen: dict[int, Tensor] = {}
    with as_before(model), torch.inference_mode(False), torch.enable_grad():
        with OperandWatch(lambda tensor: isinstance(tensor, nn.Parameter) and seen.setdefault(id(tensor), tensor)):
            outputs = call(model, example)
        trained = {id(p): p for own in numbers.values() for p in own.values() if p.requires_grad}
        reached = _reached(outputs, list(trained.values()))
    unregistered = set(missing_rules(model))
    rows = [
        CheckRow(
            name or "(the model itself)",
            label(layer, layer.rule),  # pyright: ignore - each of our layers has one
            any(id(p) in seen for p in layer.parameters(recurse=False)),
            tuple(key for key, p in numbers[name].items() if id(p) in trained.keys() - reached),
            (name or "(the module itself)") not in unregistered,
        )
        for name, layer in layers.items()
    ]
    known = {id(p) for p in (*model.parameters(), *(p for own in numbers.values() for p in own.values()))}
    outside = [tuple(t.shape) for key, t in seen.items() if key not in known]
    return CheckReport(tuple(rows), tuple(outside))


def _is_trained_delta(module: nn.Module) -> bool:
    """Whether it is what the active adapter adds to a layer, which a forward that reads weights would skip."""
    return isinstance(module, RuleUser) and any(p.requires_grad for p in module.parameters(recurse=False))


def _numbers(layer: Any) -> dict[str, nn.Parameter]:
    """The parameters of a layer and of its rule, which it may share."""
    rule = {f"rule.{name}": p for name, p in layer.rule.named_parameters()}
    return dict(layer.named_parameters(recurse=False)) | rule


def call(model: nn.Module, example: Any) -> Any:
    """The forward of an example."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, Sequence) else model(example)


def run(model: nn.Module, batch: Any, what: str) -> Any:
    """The forward of a batch.

    Raises:
        ValueError: the model does not take it; says what may be wrong.
    """
    try:
        return call(model, batch)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        given = batch.values() if isinstance(batch, Mapping) else [batch] if isinstance(batch, Tensor) else batch
        there = {str(p.device) for p in model.parameters()}
        here = {str(value.device) for value in given if isinstance(value, Tensor)}
        hint = f" (the batch is on {', '.join(here)}, the model on {', '.join(there)})" if here - there else ""
        raise ValueError(f"the model does not take {what}{hint}: {type(error).__name__}: {error}") from error


def _reached(outputs: Any, parameters: list[nn.Parameter]) -> set[int]:
    """The parameters to which a gradient comes from the outputs, wherever these are held."""
    found = [outputs] if isinstance(outputs, Tensor) else [slot.get() for slot in walk([outputs])]
    sources = [t for t in found if isinstance(t, Tensor) and t.requires_grad and t.grad_fn is not None]
    if not sources or not parameters:
        return set()
    gradients = torch.autograd.grad(sources, parameters, [torch.ones_like(t) for t in sources], allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


@contextlib.contextmanager
def as_before(model: nn.Module) -> Iterator[None]:
    """Gives buffers and the states of random numbers back as they were."""
    buffers = [
        (m, name, b, None if b is None else b.clone()) for m in model.modules() for name, b in m._buffers.items()
    ]
    states, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = None if numpy is None else numpy.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        for module, name, buffer, values in buffers:
            module._buffers[name] = buffer
            if buffer is not None and values is not None and not torch.equal(buffer, values):
                with torch.no_grad():
                    buffer.copy_(values)
