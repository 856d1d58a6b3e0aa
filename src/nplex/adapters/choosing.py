"""Which layers of a model get a delta, which do not, and why: a report that prints itself."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from nplex import nn as nx
from nplex.convert.heads import output_head
from nplex.convert.reasons import FLOATS, QUANTIZED
from nplex.convert.report import FoldRow, label, text_table
from nplex.convert.survey import names_of
from nplex.convert.twins import TWINS, is_layer, is_transposed_linear, our_class
from nplex.convert.where import Where, unselected

NO_LINEAR = "not a linear layer"
READS = "reads the weights of its projections and does not call them, so that a delta would be skipped"


@dataclass(frozen=True)
class AdapterRow(FoldRow):
    """One layer of a model.

    Attributes:
        parameters: the numbers of its delta, a shared rule not counted.
    """

    parameters: int = 0


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter was added to.

    Attributes:
        name: of the adapter.
        rows: one for each layer that is linear, or of another kind that nplex converts.
        shared_rule: parameters of the rule that all its deltas share.
        base: parameters of the model without adapters.
        others: other kinds of modules with parameters of their own, and how many there are.
        frozen: whether the base was frozen.
    """

    name: str
    rows: tuple[AdapterRow, ...]
    shared_rule: int
    base: int
    others: dict[str, int]
    frozen: bool

    @property
    def parameters(self) -> int:
        """The numbers of the adapter, its rules included."""
        return self.shared_rule + sum(row.parameters for row in self.rows)

    def __str__(self) -> str:
        cells = [
            (r.names or "(the model itself)", r.was, r.now or "skipped", f"{r.parameters:,}", r.reason)
            for r in self.rows
        ]
        lines = text_table([("layer", "is", "delta", "parameters", ""), *cells], "<<<><")
        rule = f", {self.shared_rule:,} of them the shared rule" * bool(self.shared_rule)
        lines.append(
            f"adapter {self.name!r} in {sum(r.changes for r in self.rows)} of {len(self.rows)} layers: "
            f"{self.parameters:,} parameters{rule}; {100 * self.parameters / max(self.base, 1):.3g} % of the base"
        )
        if self.others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.others.items())
            lines.append(f"other modules with parameters, skipped: {kinds}")
        last = "the base is frozen: what else is to be trained, as a new head, requires_grad_()"
        return "\n".join(lines + [last] * self.frozen)


Chosen = dict[nn.Module, tuple[AdapterRow, tuple[int, int] | None]]


def choose(model: nn.Module, where: Where | None) -> Chosen:
    """A row for each layer, and the widths of those that can have a delta and are selected."""
    names = names_of(model)
    reading = [module for module in names if isinstance(module, nn.MultiheadAttention)]
    parts = {part for module in reading for part in module.modules() if part is not module}
    inside = {part for module in names if is_layer(module) for part in module.modules() if part is not module}
    found = {}
    for module, (first, *also) in names.items():
        widths = _widths(module)
        if widths is None and (not isinstance(module, tuple(TWINS)) and not is_layer(module)):
            continue
        if module in parts or (module in inside and widths is None):
            continue
        reason = widths if isinstance(widths, str) else (NO_LINEAR if widths is None else "")
        reason = READS if module in reading else reason or _unselected(where, [first, *also], module)
        row = AdapterRow(first, tuple(also), label(module, getattr(module, "rule", None)), None, reason)
        found[module] = row, None if reason else widths
    return found


def others(model: nn.Module, chosen: Chosen) -> dict[str, int]:
    """Kinds of modules that have parameters and no row, and how many there are."""
    listed = {part for module in chosen for part in module.modules()}
    rest = [module for module in model.modules() if module not in listed and module._parameters]
    return dict(
        Counter(type(module).__name__ for module in rest if any(p is not None for p in module._parameters.values()))
    )


def linear_layers(model: nn.Module) -> dict[str, tuple[nn.Module, tuple[int, int]]]:
    """Every layer that can have a delta, under all its names, with its widths."""
    rows = choose(model, lambda name, module: True)
    found = {module: (row, widths) for module, (row, widths) in rows.items() if widths is not None}
    return {name: (module, widths) for module, (row, widths) in found.items() for name in (row.name, *row.also)}


def _widths(module: Any) -> tuple[int, int] | str | None:
    """d_in and d_out of a linear layer that calls itself, the reason why it can have no delta, or None for others."""
    if is_transposed_linear(module):
        return module.nx, module.nf
    kind, package = type(module), type(module).__module__.split(".")[0]
    ours, quantized = our_class(module), package in QUANTIZED or ".quantized" in kind.__module__
    if quantized and hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    if not isinstance(module, (nn.Linear, nx.Linear, nx.LowRankLinear)):
        return None
    if kind not in (nn.Linear, ours):
        return f"{kind.__name__} is a subclass of {'torch' if ours is None else 'nplex'}'s Linear, which may do more"
    number = next(module.parameters(), None)
    if number is not None and number.dtype not in FLOATS and type(number) is nn.Parameter:
        return f"its weight is {number.dtype}"
    return int(module.in_features), int(module.out_features)


def _unselected(where: Where | None, names: list[str], module: nn.Module) -> str:
    """The reason to leave a layer, or nothing: by default output heads are left."""
    if where is not None:
        return unselected(where, names, module)
    return next((f"{reason}; frozen too" for name in names if (reason := output_head(name))), "")
