"""Adding deltas to the weights of their layers, and taking them out again bit for bit."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nplex.adapters.adding import RULES, adapted, check_known, remove_
from nplex.adapters.delta import Deltas
from nplex.convert.reasons import FLOATS, MERGED, check_model, check_not_merged
from nplex.convert.survey import base_of
from nplex.convert.twins import is_layer, is_transposed_linear


@dataclass
class Merged:
    """What a layer keeps beside a merged weight: no parameter, and in no state.

    Attributes:
        weight: the weight as it was, or None where the active adapter has no delta here.
        deltas: the adapters of the layer.
    """

    weight: Tensor | None
    deltas: Deltas


@torch.no_grad()
def merge_(model: nn.Module, *, keep: bool = True) -> None:
    """Adds the active adapter to the weights: `W + scale V`, so that a forward costs what the base's costs.

    The model then has the names, parameters and state of the base without adapters: save, export or fold it as any
    other. What `unmerge_` needs is kept beside it, in no state: a copy of each changed weight, on its device, and
    the adapters; other adapters rest meanwhile. `keep=False` keeps nothing. All is checked before any weight is
    changed.

    Args:
        model: with an active adapter; its weights are changed.
        keep: whether `unmerge_` shall be possible; it costs the memory of the changed weights once more.

    Raises:
        TypeError: the model is not a module.
        ValueError: no adapter is active, one is merged already, or a delta is not finite; or a weight cannot take
            it: it is a converted layer's, quantized, computed, or tied to another module's. Names the layer.

    Examples:
        >>> from nplex.adapters import add_
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> report = add_(model, 2)
        >>> merge_(model)
        >>> [name for name, _ in model.named_parameters()]
        ['0.weight', '0.bias']
        >>> unmerge_(model)
        >>> len([*model.parameters()])
        5
    """
    check_model(model)
    check_not_merged(model)
    check_known(model, None)
    layers = adapted(model)
    changing = {name: layer for name, layer in layers.items() if layer.adapters.active is not None}
    if not changing:
        raise ValueError("no adapter is active, so that nothing would be merged: use_ one first")
    owners = _owners(model)
    for name, layer in changing.items():
        if reason := _reason(layer, owners):
            raise ValueError(f"the adapter of {name or 'the model'} cannot be merged: {reason}")
    for layer in layers.values():
        deltas, weight = layer.adapters, layer._parameters.get("weight")
        changes = deltas.active is not None
        old = weight.detach().clone() if keep and changes else None
        if changes:
            weight.copy_(_sum(weight, layer))
        if keep:
            deltas.handle.remove()
            del layer.adapters
            vars(layer)[MERGED] = Merged(old, deltas)
    if not keep:
        remove_(model)
    elif (rules := base_of(model)._modules.pop(RULES, None)) is not None:
        vars(base_of(model))[RULES + "_merged"] = rules


@torch.no_grad()
def unmerge_(model: nn.Module) -> None:
    """Takes a merged adapter out again: the base has the same bits as before, and the adapters are there again.

    The kept weights take the device and type that the model has now.

    Raises:
        TypeError: the model is not a module.
        ValueError: nothing is merged, or a weight was changed since: unmerging would undo that too.
    """
    check_model(model)
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if MERGED in vars(module)}
    if not layers:
        raise ValueError("no adapter is merged into this model, so that nothing can be unmerged")
    for name, layer in layers.items():
        merged: Merged = vars(layer)[MERGED]
        if merged.weight is not None and not _is_sum(layer, merged.weight, merged.deltas):
            raise ValueError(
                f"{name or 'the model'}.weight was changed after the adapter was merged (loaded or trained); "
                f"unmerging would put the old weight in its place. Load the merged weights first"
            )
    for layer in layers.values():
        merged = vars(layer).pop(MERGED)
        if merged.weight is not None:
            layer.weight.copy_(merged.weight)
        layer.adapters = merged.deltas.to(layer.weight.device).train(layer.training)
        layer.adapters.hook_in(layer)
    base: Any = base_of(model)
    if (rules := vars(base).pop(RULES + "_merged", None)) is not None:
        setattr(base, RULES, rules.to(next(iter(layers.values())).weight.device).train(model.training))


def _reason(layer: Any, owners: dict[int, list[str]]) -> str:
    """Why the active delta of a layer cannot be added to its weight, or nothing."""
    weight = layer._parameters.get("weight")
    if is_layer(layer):
        return (
            "its weight is computed from a rule of its own. Leave it unmerged; or save the adapters, remove_, "
            "nplex.fold_, load and merge_"
        )
    if weight is None or type(weight) is not nn.Parameter or weight.dtype not in FLOATS:
        return "its weight is quantized or computed, and cannot take it exactly; leave it unmerged"
    if weight.is_meta:
        return "its weight is on the meta device"
    if len(tied := owners[weight.untyped_storage().data_ptr()]) > 1:
        return f"its weight is tied ({' = '.join(tied)}), and all would change; leave it unmerged, or untie them"
    if not bool(_sum(weight, layer).isfinite().all()):
        return f"weight and delta {layer.adapters.active!r} have a sum that is not finite; load an earlier adapter"
    return ""


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """The names of all parameters that lie in one memory; a module that is used at several places counts once."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and type(parameter) is nn.Parameter:
                owners[parameter.untyped_storage().data_ptr()].append(f"{name}.{key}".removeprefix("."))
    return owners


def _sum(weight: Tensor, layer: Any, deltas: Deltas | None = None) -> Tensor:
    """`W + scale V` in the type of W."""
    deltas = layer.adapters if deltas is None else deltas
    delta = deltas[deltas.active].weight()  # pyright: ignore - it is a Delta, and active
    delta = delta.mT if is_transposed_linear(layer) else delta
    return (weight + delta).to(weight.dtype)


def _is_sum(layer: Any, old: Tensor, deltas: Deltas) -> bool:
    """Whether a weight is what it was after merging, but for rounding."""
    expected, now = _sum(old, layer, deltas), layer.weight
    expected = expected.to(now.device, now.dtype).double()
    limit = 8 * torch.finfo(now.dtype).eps * expected.abs().max()
    return bool((now.double() - expected).abs().max() <= limit)
