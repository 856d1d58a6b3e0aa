"""What people set on layers and parameters in Python, from an old layer to the one in its place."""

import re
from typing import Any

from torch import Tensor, nn

# Attributes that torch's layers do not have.
OWN = {"method", "rule", "transposed_class", "_weights", "_torch_names", "_channels_last"}


def carry(old: nn.Module, new: nn.Module, dense: nn.Module) -> None:
    """Sets on a layer, its parts and its parameters what was set on those of the old one.

    Attributes of a weight go to its components, or back; those of a rule have nowhere to go.

    Args:
        old: the layer that is replaced.
        new: the one in its place; it is changed.
        dense: a fresh torch layer of the kind, which tells what is set on each of them.

    Raises:
        ValueError: one cannot be carried over, as it is about numbers or names that the new layer does not have.
    """
    parts, fresh = dict(new.named_modules()), dict(dense.named_modules())
    for name, part in old.named_modules():
        if name in fresh and name in parts:
            set_here = {key: value for key, value in vars(part).items() if key not in vars(fresh[name])}
            if hasattr(type(part), "to_torch"):  # it is ours
                set_here = {key: value for key, value in set_here.items() if key not in OWN}
            _carry_attributes(set_here, part, parts[name])
    homes: dict[str, list[nn.Parameter]] = {}
    for name, parameter in new.named_parameters():
        homes.setdefault(_dense_name(name), []).append(parameter)
    for name, parameter in old.named_parameters():
        found = homes.get(_dense_name(name), [])
        if "rule." not in name:
            _check_attributes(name, vars(parameter), found)
        for home in found:
            vars(home).update(vars(parameter))


def _carry_attributes(values: dict[str, Any], old: nn.Module, new: nn.Module) -> None:
    """Sets the attributes of one module."""
    sizes = {p.shape for p in old.parameters() if p.ndim > 1}
    for key, value in values.items():
        if hasattr(new, key):
            raise ValueError(f"its attribute {key} would mean something else in nplex's {type(new).__name__}")
        if isinstance(value, Tensor) and value.shape in sizes:
            raise ValueError(
                f"its attribute {key} is a tensor of the size of its weight, which its twin does not have"
            )
        vars(new)[key] = value


def _check_attributes(name: str, values: dict[str, Any], homes: list[nn.Parameter]) -> None:
    """Refuses attributes of a parameter that are about its own numbers, or that have nowhere to go."""
    for key, value in values.items():
        if not homes:
            raise ValueError(f"its {name} has an attribute {key}, for which the new layer has no parameter")
        if callable(value) or isinstance(value, nn.Module) or (isinstance(value, Tensor) and value.numel() > 1):
            kind = type(value).__name__
            raise ValueError(f"its {name} has an attribute {key}, a {kind}, which may be about that weight alone")


def _dense_name(name: str) -> str:
    """Torch's name of a parameter of either layer; of low-rank components both factors are the weight."""
    return re.sub(r"components|\b(left|right)$", "weight", name)
