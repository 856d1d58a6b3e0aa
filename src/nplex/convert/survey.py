"""Looking at a model before it is changed: what would change, what is skipped, and why."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from nplex.convert.heads import BY_DEFAULT, head_by_place
from nplex.convert.reasons import check_model, check_no_adapters, lost, special
from nplex.convert.references import References
from nplex.convert.report import FROZEN, Report, Row, label
from nplex.convert.spec import Choice, Conversion
from nplex.convert.twins import TWINS, is_layer, make_twin, shadow, twin_class, untransposed
from nplex.convert.where import fits, unfitting
from nplex.nn import Rule
from nplex.nn.sharing import check_base, mark_shared


class Survey(NamedTuple):
    """The report, and the rule of each layer that changes."""

    report: Report
    choices: dict[str, Choice]

    @property
    def shared(self) -> list[tuple[str, Choice]]:
        """The rules to be registered at the base, with their names there."""
        new = [choice for choice in dict.fromkeys(self.choices.values()) if choice.registers]
        return [(f"rule_{i}" if i else "rule", choice) for i, choice in enumerate(new)]


def survey(model: nn.Module, spec: Conversion) -> Survey:
    """A row for each layer of a kind that has a twin, and what else holds parameters. Takes no memory.

    Raises:
        TypeError: the model is not a module.
        ValueError: the model is itself such a layer, is wrapped, or cannot hold the shared rule.
    """
    check_model(model)
    check_no_adapters(model)
    if twin_class(model) is not None:
        kind = twin_class(model).__name__
        raise ValueError(
            f"the model is itself a {type(model).__name__} and cannot be replaced in place; "
            f"use nplex.nn.{kind}.like(model, rule=...)"
        )
    names = names_of(model)
    parts = {part for module in names if is_unit(module) for part in module.modules() if part is not module}
    references, heads = References(model), head_by_place(model)
    rows, choices = [], {}
    for module, places in names.items():
        if module not in parts and _is_listed(module):
            row, choice = _row(module, places, spec, references, heads.get(module, ""))
            rows.append(row)
            choices |= {} if choice is None else {row.name: choice}
    found = Survey(Report(tuple(rows), _numel(model), 0, _others(names, parts), _unmatched(spec, rows)), choices)
    for name, _ in found.shared:
        check_base(base_of(model), name)
    common = sum(_numel(choice.template) for _, choice in found.shared)
    return found._replace(report=replace(found.report, shared_rule=common))


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """All modules, each with all its names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def is_unit(module: nn.Module) -> bool:
    """Whether it is replaced as a whole, so that its parts are not looked at by themselves."""
    return twin_class(module) is not None or is_layer(module)


def _is_listed(module: nn.Module) -> bool:
    """Whether the report has a row for it."""
    return is_unit(module) or isinstance(module, tuple(TWINS)) or bool(special(module))


def _row(
    module: Any, places: list[str], spec: Conversion, references: References, head: str
) -> tuple[Row, Choice | None]:
    """What happens to one layer, and by which rule."""
    row = Row(places[0], tuple(places[1:]), label(module), None, "", _numel(module), _numel(module))
    choice = "already converted" if is_layer(module) else _own_kind(module) or spec.choose(places, module, head)
    reason = choice if isinstance(choice, str) else lost(module) or references.reason(module)
    if reason.startswith(BY_DEFAULT):
        reason = references.reason(module) or reason
    if isinstance(choice, str) or reason:
        return replace(row, reason=reason), None
    twin = _shadow_twin(module, choice)
    if isinstance(twin, str):
        return replace(row, reason=twin), None
    if (now := _numel(twin)) >= row.was_parameters:
        return replace(row, reason=f"would have {now:,} parameters, not fewer"), None
    if spec.weights == "nearest" and (wrong := _not_finite(module)):
        return replace(row, reason=f"its {wrong} is not finite, so that nothing is near to it"), None
    note = "" if spec.weights == "nearest" else _note(module)
    return replace(row, now=label(twin, choice.template), now_parameters=now, note=note), choice


def _own_kind(module: nn.Module) -> str:
    """The reason to skip a layer that is not simply one of torch's, or nothing."""
    if any(is_lazy(p) for p in module.parameters()):
        return "is not initialised yet: run one batch first"
    if reason := special(module):
        return reason
    if twin_class(module) is None:
        kind = next(kind for kind in TWINS if isinstance(module, kind))
        return f"{type(module).__name__} is a subclass of torch's {kind.__name__}, which may do more"
    return ""


def _shadow_twin(module: nn.Module, choice: Choice) -> Any:
    """The layer that would take its place, without numbers; or the reason why there is none."""
    old = untransposed(shadow(module))
    rule = choice.fresh(torch.device("meta"), next(old.parameters()).dtype)
    if choice.shares:
        mark_shared(rule)
    try:
        twin = make_twin(shadow(module), rule, choice.low_rank(old))
    except ValueError as error:
        return str(error)
    dense = twin.to_torch()
    more = sorted(_content(module) - _content(dense))
    if more:
        what = " and ".join(dict(dense.named_parameters())) if len([*dense.parameters()]) < 3 else "its own numbers"
        return f"holds more than {what}, which would be lost: {', '.join(more)}"
    sizes = {name: p.shape for name, p in old.named_parameters()}
    wrong = [name for name, p in dense.named_parameters() if sizes.get(name) != p.shape]
    if wrong:
        found = ", ".join(f"{name} {tuple(sizes[name])}" if name in sizes else f"no {name}" for name in wrong)
        return f"its numbers are not of the sizes that it has by its description: {found}"
    return twin


def _content(module: nn.Module) -> set[str]:
    """Names of all that it holds."""
    kinds = module.named_parameters(), module.named_buffers(), module.named_modules()
    return {name for found in kinds for name, _ in found}


def _not_finite(module: nn.Module) -> str:
    """The name of a parameter with a number that is not finite, or nothing."""
    found = (name for name, p in module.named_parameters() if not p.is_meta and not bool(p.detach().isfinite().all()))
    return next(found, "")


def _note(module: nn.Module) -> str:
    """What to know of a layer that gets fresh numbers."""
    zero = zeros(module)
    if any(p.ndim > 1 and not p.requires_grad and name not in zero for name, p in module.named_parameters()):
        return FROZEN
    return f"zero as before: {', '.join(zero)}" * bool(zero)


def zeros(module: nn.Module) -> list[str]:
    """The names of weights that are all zeros, as an initialiser set them; not to be known on the meta device."""
    numbers = module.named_parameters()
    return [name for name, p in numbers if p.ndim > 1 and not p.is_meta and not bool(p.any())]


def _unmatched(spec: Conversion, rows: list[Row]) -> tuple[str, ...]:
    """Patterns that fit no layer: written wrongly; or, of those with a rule, hidden by those before."""
    names = [name for row in rows for name in (row.name, *row.also)]
    first = set(map(spec.first, names))
    rules = tuple(
        c.pattern
        for c in spec.choices
        if c.pattern != "*" and c not in first and (c.rule is not None or not any(fits(n, c.pattern) for n in names))
    )
    return (*rules, *unfitting(spec.condition, names))


def _others(names: dict[nn.Module, list[str]], parts: set[nn.Module]) -> tuple[tuple[str, int, int], ...]:
    """Kinds of other modules that hold parameters: name, how many, their parameters."""
    found: dict[str, list[int]] = {}
    for module in names:
        numbers = sum(p.numel() for p in module.parameters(recurse=False) if not is_lazy(p))
        if numbers and module not in parts and not _is_listed(module) and not isinstance(module, Rule):
            found.setdefault(type(module).__name__, []).append(numbers)
    return tuple((kind, len(numbers), sum(numbers)) for kind, numbers in found.items())


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if not is_lazy(p))


def base_of(model: nn.Module) -> nn.Module:
    """The module that holds shared rules: the model, or of transformers' models with a head the base within it.

    There they belong to what AutoModel loads, and to what the base model's save_pretrained writes.
    """
    base = getattr(model, "base_model", None) if hasattr(model, "base_model_prefix") else None
    return base if isinstance(base, nn.Module) else model
