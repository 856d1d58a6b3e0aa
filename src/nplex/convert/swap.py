"""One walk over a model: replace linear layers, keep tied modules tied, report what was kept and why."""

from typing import cast

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from nplex.algebra import Algebra
from nplex.convert.report import Report, Row
from nplex.convert.spec import Conversion, Where
from nplex.nn import Linear, Rule, share

CONVERTED = (nn.Linear, NonDynamicallyQuantizableLinear)


def preview(
    model: nn.Module, rule: int | Algebra | Rule, *, where: Where | None = None, shared: bool = False
) -> Report:
    """What `convert_` would change, what would stay and why; prints itself, changes nothing.

    Args:
        model: any model; on the meta device too.
        rule: n, an algebra, or a rule.
        where: which layers, by name and module; see `only` and `all_but`. None for all linear layers.
        shared: whether all converted layers use one rule.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
        >>> print(preview(model, rule=4, where=lambda name, module: name == "0"))
        layer  was              was_parameters  now                      now_parameters
        0      Linear(64, 256)          16,640  Linear(64, 256, rule=4)           4,416
        2      Linear(256, 8)            2,056  stays                             2,056  not selected by where
        1 of 2 linear layers change: 18,696 -> 6,472 parameters in all (34.6 %)
    """
    return _rows(model, Conversion(rule, where, shared))


def convert_(
    model: nn.Module, rule: int | Algebra | Rule, *, where: Where | None = None, shared: bool = False
) -> Report:
    """Replaces linear layers by their twins with 1/n of the parameters, in place, with fresh weights.

    A layer used at several places is replaced by one layer at all of them; layers already converted are left
    alone; a weight tied to another module stays dense. Train the model afterwards.

    Args:
        model: any model that contains linear layers; it is changed.
        rule: n, an algebra, or a rule; each layer gets a fresh one of its own like it.
        where: which layers, by name and module; see `only` and `all_but`. None for all linear layers.
        shared: one rule for all converted layers, registered as `model.rule`.

    Raises:
        ValueError: no layer can be converted (the reasons are named), or the model is itself a linear layer.
    """
    spec = Conversion(rule, where, shared)
    report = _rows(model, spec)
    changed = [row for row in report.rows if row.changes]
    if not changed and not any(isinstance(module, Linear) for module in model.modules()):
        raise ValueError(f"nothing to convert in {type(model).__name__}:\n{report}")
    if not changed:
        return report
    old = {row.name: model.get_submodule(row.name) for row in changed}
    first = next(iter(old.values())).get_parameter("weight")
    common = share(model, spec.fresh_rule(first.device, first.dtype)) if shared else None
    for row in changed:
        new = _twin(cast(nn.Linear, old[row.name]), spec, common)
        for name in (row.name, *row.also):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, new)
    return report


def _twin(old: nn.Linear, spec: Conversion, common: Rule | None) -> Linear:
    """A fresh hypercomplex layer in the place of a torch layer: same sizes, device, type and mode."""
    weight = old.weight
    rule = common if common is not None else spec.fresh_rule(weight.device, weight.dtype)
    new = Linear(
        old.in_features, old.out_features, old.bias is not None, device=weight.device, dtype=weight.dtype, rule=rule
    )
    for parameter in new.parameters():
        parameter.requires_grad_(weight.requires_grad)
    return new.train(old.training)


def _rows(model: nn.Module, spec: Conversion) -> Report:
    """A row for each linear layer, and the number of parameters of everything else."""
    if isinstance(model, CONVERTED):
        raise ValueError("the model is itself a linear layer and cannot be replaced in place; use nplex.nn.Linear")
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    holders: dict[int, set[str]] = {}
    for module, places in names.items():
        for key, parameter in module.named_parameters(recurse=False):
            holders.setdefault(id(parameter), set()).add(f"{places[0]}.{key}")
    rows = [
        _row(module, places, spec, _tied(module, places, holders))
        for module, places in names.items()
        if isinstance(module, (nn.Linear, Linear))
    ]
    template = spec.template
    common = sum(p.numel() for p in template.parameters()) if spec.shared and any(r.changes for r in rows) else 0
    return Report(tuple(rows), sum(p.numel() for p in model.parameters()), common)


def _row(module: nn.Linear | Linear, places: list[str], spec: Conversion, tied: str) -> Row:
    """What happens to one linear layer."""
    was = sum(p.numel() for p in module.parameters())
    label = f"Linear({module.in_features}, {module.out_features})"
    if isinstance(module, Linear):
        return Row(places[0], tuple(places[1:]), label, was, None, was, "already converted")
    reason = _kept(module, places[0], spec) or tied
    if reason:
        return Row(places[0], tuple(places[1:]), label, was, None, was, reason)
    template = spec.fresh_rule(torch.device("meta"), torch.float32)
    new = Linear(module.in_features, module.out_features, module.bias is not None, device="meta", rule=template)
    now = sum(p.numel() for p in new.parameters()) - (sum(p.numel() for p in template.parameters()) * spec.shared)
    if now >= was:
        return Row(places[0], tuple(places[1:]), label, was, None, was, f"would have {now:,} parameters, not fewer")
    twin = f"Linear({module.in_features}, {module.out_features}, rule={rule_label(spec.template)})"
    return Row(places[0], tuple(places[1:]), label, was, twin, now, "")


def _kept(module: nn.Linear, name: str, spec: Conversion) -> str:
    """The reason why a torch layer stays as it is, or nothing."""
    n = spec.template.n
    if type(module) not in CONVERTED:
        return f"{type(module).__name__} is a subclass of torch's Linear, which may do more"
    if spec.where is not None and not spec.where(name, module):
        return "not selected by where"
    for width in ("in_features", "out_features"):
        if n > getattr(module, width):
            return f"n = {n} is larger than {width} = {getattr(module, width)}"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "has hooks, which would be lost"
    return ""


def _tied(module: nn.Module, places: list[str], holders: dict[int, set[str]]) -> str:
    """The reason to leave a layer whose parameter another module holds too."""
    for key, parameter in module.named_parameters(recurse=False):
        others = holders[id(parameter)] - {f"{places[0]}.{key}"}
        if others:
            return f"its {key} is tied to {', '.join(sorted(others))}"
    return ""


def rule_label(rule: Rule) -> str:
    """`4`, `4:7`, `quaternion`: a rule as the command line writes it."""
    algebra = getattr(rule, "algebra", None)
    if algebra is not None:
        return algebra.name
    return f"{rule.n}" if rule.rank is None else f"{rule.n}:{rule.rank}"
