"""Adding an adapter to a model, switching between several at run time, removing them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nplex.adapters.choosing import AdapterReport, Chosen, choose, others
from nplex.adapters.delta import Delta, Deltas, Guests, components
from nplex.convert.reasons import check_model, check_no_adapters, check_not_merged
from nplex.convert.report import rule_label
from nplex.convert.spec import Choice
from nplex.convert.survey import base_of
from nplex.convert.where import Layers, as_where
from nplex.nn import Rule, as_rule
from nplex.nn.sharing import mark_shared
from nplex.nn.written import RuleLike

RULES = "adapter_rules"
MakeRule = Callable[[torch.device, torch.dtype], Rule]


def add_(
    model: nn.Module,
    rule: RuleLike = 4,
    *,
    low_rank: int | float = 1,
    shared: bool = True,
    scale: int | float = 1.0,
    dropout: int | float = 0.0,
    where: Layers | None = None,
    name: str = "default",
) -> AdapterReport:
    """Adds `scale sum_k kron(rule[k], left[k] right[k])` to the weights of linear layers, in place.

    The delta starts at exactly zero and is never built: a forward hook adds its output to that of the layer, so that
    names and types of the base stay, and its checkpoints load. The first adapter freezes the base: afterwards, train
    a new head by `model.classifier.requires_grad_(True)`. The adapter that is added last is the active one: `use_`.

    Adapted are torch's Linear, transformers' Conv1D, Linear and LowRankLinear of nplex, and quantized linear layers.
    Numbers are float32, or float64 where the layer's are. Nothing is changed when an error is raised.

    Args:
        model: any model; it is changed. Make the optimizer, wrap and compile afterwards.
        rule: n for learned rules, an algebra for fixed ones, a rule that fresh ones are like, or a text as "4:7".
        low_rank: r; a delta has r (d_in + d_out) numbers for any n, and a rank of n^2 r at most. Below 1, as 1/4 with
            n = 4, it has n r components of rank 1: fewer numbers than the smallest LoRA.
        shared: one rule for all deltas, at the base of the model as `adapter_rules`; or one for each.
        scale: what the delta is multiplied by.
        dropout: the share of the delta's inputs that are set to zero in training.
        where: which layers, as in convert_; None for all but output heads.
        name: of the adapter.

    Returns:
        A report that prints itself: a row for each layer, with the reason where it gets no delta.

    Raises:
        TypeError: the model is not a module, the rule no rule, or where neither names nor a function.
        ValueError: a number is impossible, the name is taken, no layer is left, or the model is wrapped, merged or
            has adapters of peft.

    Source: Mahabadi et al., Compacter (2021), section 4, for the delta; Hu et al., LoRA (2021), for its place.

    Examples:
        >>> print(add_(nn.Sequential(nn.Linear(64, 256), nn.ReLU()), 4))
        layer  is               delta               parameters
        0      Linear(64, 256)  rule 4, low rank 1         320
        adapter 'default' in 1 of 1 layers: 384 parameters, 64 of them the shared rule; 2.31 % of the base
        the base is frozen: what else is to be trained, as a new head, requires_grad_()
    """
    template = as_rule(rule, power=1.0, device=None if isinstance(rule, Rule) else "meta")
    check_options(template, low_rank, scale, dropout)
    check_addable(model, [name])
    options: dict[str, Any] = {"low_rank": low_rank, "scale": float(scale), "dropout": float(dropout)}
    return _add(model, name, choose(model, as_where(where)), template, shared, options)


def _add(
    model: nn.Module, name: str, chosen: Chosen, template: Rule, shared: bool, options: dict[str, Any]
) -> AdapterReport:
    """Makes all deltas, then puts them in; the report."""
    widths = {module: sizes for module, (_, sizes) in chosen.items() if sizes is not None}
    deltas, common, reasons = make_deltas(widths, Choice("*", template, False).fresh, shared, options)
    label = f"rule {rule_label(template)}, low rank {options['low_rank']:.3g}"
    rows = [
        replace(row, now=label, parameters=_size(deltas[module]))
        if module in deltas
        else replace(row, reason=reasons.get(module, row.reason))
        for module, (row, _) in chosen.items()
    ]
    base = _size(model) - sum(_size(part) for _, part in parts(model))
    report = AdapterReport(name, tuple(rows), _size(common), base, others(model, chosen), not adapted(model))
    if not deltas:
        raise ValueError(f"no layer of {type(model).__name__} can be adapted, or where selects none:\n{report}")
    put_in(model, name, deltas, common)
    return report


def use_(model: nn.Module, name: str | None) -> None:
    """Makes an adapter the active one, which is added and trained; None is the base alone.

    The others are frozen until they are used. Call it between steps; an optimizer must hold the numbers of this one.

    Raises:
        ValueError: the adapter is unknown, or the model is wrapped or merged.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which looks anew
    check_model(model)
    check_not_merged(model)
    if name is not None:
        check_known(model, name)
    for layer in adapted(model).values():
        layer.adapters.active = name if name in layer.adapters else None
    for key, part in parts(model) if name is not None else ():
        part.requires_grad_(key == name)


def remove_(model: nn.Module, name: str | None = None) -> None:
    """Takes an adapter out of all layers, or all adapters; the base is as it was, and stays frozen.

    Raises:
        ValueError: the adapter is unknown, or the model is wrapped or merged.
    """
    check_model(model)
    check_not_merged(model)
    check_known(model, name)
    for layer in adapted(model).values():
        deltas = layer.adapters
        for key in [key for key in deltas if name in (None, key)]:
            del deltas[key]
        deltas.active = deltas.active if deltas.active in deltas else None
        if not len(deltas):
            deltas.handle.remove()
            del layer.adapters
    base = base_of(model)
    if isinstance(rules := base._modules.get(RULES), Guests):
        for key in [key for key in rules if name in (None, key)]:
            del rules[key]
        if not len(rules):
            delattr(base, RULES)


def make_deltas(
    widths: dict[nn.Module, tuple[int, int]], make_rule: MakeRule, shared: bool, options: dict[str, Any]
) -> tuple[dict[nn.Module, Delta], Rule | None, dict[nn.Module, str]]:
    """The deltas of an adapter, its shared rule if there is one, and why layers get none; nothing is put in.

    Raises:
        ValueError: layers that would share a rule are of several types or on several devices.
    """
    common: Rule | None = None
    deltas, reasons = {}, {}
    kinds = {module: number_kind(module) for module in widths}
    if shared and len(set(kinds.values())) > 1:
        found = ", ".join(sorted({f"{dtype} on {device}" for device, dtype in kinds.values()}))
        raise ValueError(f"one rule cannot be shared by layers whose deltas are {found}; take shared=False")
    for module, sizes in widths.items():
        device, dtype = kinds[module]
        rule = common if common is not None else make_rule(device, dtype)
        if shared and common is None:
            mark_shared(rule)
            common = rule
        try:
            deltas[module] = Delta(sizes, rule, **options, device=device, dtype=dtype).train(module.training)
        except ValueError as error:
            reasons[module] = str(error)
    return deltas, common if deltas else None, reasons


def put_in(model: nn.Module, name: str, deltas: dict[nn.Module, Delta], common: Rule | None) -> None:
    """Puts new deltas into their layers and their rule at the base; freezes the base before the first adapter."""
    if not adapted(model):
        model.requires_grad_(False)
    base = base_of(model)
    if common is not None and isinstance(base, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        next(iter(deltas.values())).add_module("shared_rule", common)
    elif common is not None:
        rules: Any = base._modules.setdefault(RULES, Guests().train(model.training))
        rules[name] = common.train(model.training)
    for layer, delta in deltas.items():
        if "adapters" not in layer._modules:
            layer.adapters = Deltas(layer).train(layer.training)
        layer._modules["adapters"][name] = delta  # pyright: ignore - Deltas
    use_(model, name)


def check_addable(model: nn.Module, names: Iterable[str]) -> None:
    """Refuses a model that can have no new adapters of these names.

    Raises:
        TypeError: the model is not a module, or a name is not a text.
        ValueError: says what is in the way.
    """
    check_model(model)
    check_no_adapters(model, ours=True)
    if lazy := [name for name, p in model.named_parameters() if is_lazy(p)]:
        raise ValueError(f"{lazy[0]} is not initialised yet: run one batch first")
    present = {key for key, _ in parts(model)}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the name of an adapter must be a text, got {name!r}")
        if not name.isidentifier() or hasattr(Guests(), name):
            raise ValueError(f"{name!r} cannot be the name of an adapter: take letters, digits and _, as in 'german'")
        if name in present:
            raise ValueError(f"there is an adapter {name!r} already: take another name, or remove_ it first")
    base = base_of(model)
    if hasattr(base, RULES) and not isinstance(getattr(base, RULES), Guests):
        raise ValueError(
            f"{type(base).__name__} has an attribute {RULES!r} of its own, where shared rules would stand"
        )


def check_options(rule: Rule, low_rank: int | float, scale: int | float, dropout: int | float) -> None:
    """Refuses what no delta can be made with.

    Raises:
        ValueError: names the argument.
    """
    if rule.is_shared:
        raise ValueError("the rule is shared by layers of a model: give n, an algebra or a free rule, shared=True")
    components(rule.n, low_rank)
    real = [isinstance(number, int | float) and not isinstance(number, bool) for number in (scale, dropout)]
    if not real[0] or not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive finite number, got {scale!r}")
    if not real[1] or not 0 <= dropout < 1:
        raise ValueError(f"dropout must be a number from 0 to below 1, got {dropout!r}")


def check_known(model: nn.Module, name: str | None) -> None:
    """Refuses the name of an adapter that is not there; None is any.

    Raises:
        ValueError: names those there are.
    """
    present = dict.fromkeys(key for key, _ in parts(model))
    if not present:
        raise ValueError(f"{type(model).__name__} has no adapters: nplex.adapters.add_ adds one")
    if name is not None and name not in present:
        raise ValueError(f"unknown adapter {name!r}; choose from {', '.join(present)}")


def adapted(model: nn.Module) -> dict[str, Any]:
    """The layers that have adapters, by their first name."""
    return {name: m for name, m in model.named_modules() if isinstance(m._modules.get("adapters"), Deltas)}


def parts(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """Deltas and shared rules of a model, each with the name of its adapter."""
    for module in model.modules():
        if isinstance(module, Guests):
            yield from module.items()


def number_kind(layer: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and type of a layer's delta: float64 for float64, else float32; where an offloaded layer computes."""
    numbers = [*layer.parameters(recurse=False), *layer.parameters(), *layer.buffers()]
    device = numbers[0].device if numbers else torch.device("cpu")
    hook = getattr(layer, "_hf_hook", None)
    device = torch.device(getattr(hook, "execution_device", None) or device) if device.type == "meta" else device
    return device, torch.float64 if numbers and numbers[0].dtype is torch.float64 else torch.float32


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())
