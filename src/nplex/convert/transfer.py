"""A conversion in the names and sizes of another model of transformers: its base, another head, other widths."""

from typing import Any

import torch
from torch import nn

from nplex.convert.record import read_record, sizes_of
from nplex.convert.twins import is_layer, make_twin, shadow, twin_class, untransposed


def moved(data: Any, base: str, model: Any) -> dict[str, Any]:
    """A conversion with the names that a model has for the saved model's layers, without those it does not have.

    Args:
        data: the conversion, as config.json holds it.
        base: the name of the base model within the saved one.
        model: of the saved class, its base, or one with another head.

    Raises:
        ValueError: the conversion is damaged, or the model has none of its layers.
    """
    layers, here = read_record(data), base_name(model)
    modules = dict(model.named_modules())

    def move(name: str) -> str:
        if base and name != base and not name.startswith(base + "."):
            return name  # of a head
        own = name.removeprefix(base).removeprefix(".") if base else name
        return f"{here}.{own}" if here else own

    moved = {move(name): entry for name, entry in data["layers"].items()}
    if type(model).__name__ not in (model.config.architectures or ()):  # another head may have the name for a block
        moved = {name: entry for name, entry in moved.items() if not _is_block(modules.get(name))}
    there = [name for name in moved if name in modules]
    inner = {name for name in moved if any(name.startswith(outer + ".") for outer in there)}
    kept = {name: entry for name, entry in moved.items() if name in modules or name in inner}
    if layers and not kept:
        raise ValueError(f"it has none of the {len(layers)} converted layers, {next(iter(layers))} and so on")
    for name, entry in kept.items():
        if isinstance(entry.get("shared"), str):
            kept[name] = entry | {"shared": move(entry["shared"])}
    return data | {"layers": kept}


def resized(data: dict[str, Any], model: nn.Module, *, fresh: bool) -> tuple[dict[str, Any], list[str]]:
    """A conversion in the sizes of a model, and the names of the layers that have others there.

    These get fresh numbers, as dense ones do. A layer narrower than n stays dense, and is not among the names.

    Args:
        data: the conversion, in this model's names.
        model: not yet converted.
        fresh: whether there may be such layers, as ignore_mismatched_sizes says.

    Raises:
        ValueError: there is one and must not be; names it.
    """
    layers, names, modules = dict(data["layers"]), [], dict(model.named_modules())
    for name, layer in read_record(data).items():
        module = modules.get(name)
        if module is None or twin_class(module) is None:
            continue
        here = sizes_of(untransposed(shadow(module)))
        other = {key: size for key, size in here.items() if layer.sizes.get(key, size) != size}
        if not other:
            continue
        if not fresh:
            key, size = next(iter(other.items()))
            raise ValueError(
                f"{name} was recorded with {key} = {layer.sizes[key]!r:.50}, the model has {size}: build the model "
                f"in that size, or give ignore_mismatched_sizes=True for a fresh layer"
            )
        layers[name] = layers[name] | {"sizes": layer.sizes | other}
        try:
            rule = layer.rule.make(torch.device("meta"), torch.get_default_dtype())
            make_twin(shadow(module), rule, layer.sizes.get("low_rank"))
            names.append(name)
        except ValueError:
            del layers[name]
    return data | {"layers": layers}, names


def base_name(model: Any) -> str:
    """Where the base model stands in a model with a head; "" where it is the base itself."""
    return "" if model.base_model is model else model.base_model_prefix


def _is_block(module: nn.Module | None) -> bool:
    """Whether a module has no counterpart in nplex.nn, and is none."""
    return module is not None and twin_class(module) is None and not is_layer(module)
