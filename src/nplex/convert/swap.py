"""One walk over a model: replace linear layers, keep tied modules tied, report what was kept and why."""

from typing import cast

from torch import Tensor, nn

from nplex.algebra import Algebra
from nplex.convert.report import Report
from nplex.convert.spec import Conversion, Where
from nplex.convert.survey import survey
from nplex.nn import Linear, Rule
from nplex.nn.sharing import register


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
    return survey(model, Conversion(rule, where, shared))


def convert_(
    model: nn.Module, rule: int | Algebra | Rule, *, where: Where | None = None, shared: bool = False
) -> Report:
    """Replaces linear layers by their twins with 1/n of the parameters, in place, with fresh weights.

    A layer used at several places is replaced by one layer at all of them; layers already converted are left
    alone; a weight tied to another module stays dense. Nothing is changed when an error is raised. Make the
    optimizer afterwards (one made before holds the old weights), then train.

    Args:
        model: any model that contains linear layers; it is changed.
        rule: n, an algebra, or a rule; each layer gets a fresh one of its own like it. A rule that is shared
            already (`nplex.nn.share`) is used itself.
        where: which layers, by name and module; see `only` and `all_but`. None for all linear layers. A layer
            with several names is taken if all are.
        shared: one rule for all converted layers, registered as `model.rule`.

    Raises:
        TypeError: the model is no module, or the rule no rule.
        ValueError: no layer can be converted (the reasons are named), or the model is itself a linear layer, is
            wrapped already, or cannot hold a shared rule.
    """
    spec = Conversion(rule, where, shared)
    report = survey(model, spec)
    changed = [row for row in report.rows if row.changes]
    if not changed:
        if any(isinstance(module, Linear) for module in model.modules()):
            return report
        raise ValueError(f"nothing to convert in {type(model).__name__}:\n{report}")
    old = {row.name: cast(nn.Linear, model.get_submodule(row.name)) for row in changed}
    common = _common(spec, old[changed[0].name].weight)
    twins = {name: _twin(layer, spec, common) for name, layer in old.items()}  # all made before any is put in
    if common is not None and spec.registers:
        register(model, common)
    for row in changed:
        for name in (row.name, *row.also):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, twins[row.name])
    return report


def _common(spec: Conversion, weight: Tensor) -> Rule | None:
    """The rule that all converted layers share, if they do."""
    if not spec.shares:
        return None
    if not spec.registers:
        return cast(Rule, spec.rule)
    rule = spec.fresh_rule(weight.device, weight.dtype)
    rule.place = "shared"
    return rule


def _twin(old: nn.Linear, spec: Conversion, common: Rule | None) -> Linear:
    """A fresh hypercomplex layer in the place of a torch layer: same sizes, device, type and mode."""
    weight = old.weight
    rule = common if common is not None else spec.fresh_rule(weight.device, weight.dtype)
    new = Linear(
        old.in_features, old.out_features, old.bias is not None, device=weight.device, dtype=weight.dtype, rule=rule
    )
    new.components.requires_grad_(weight.requires_grad)
    if new.bias is not None:
        new.bias.requires_grad_(old.bias.requires_grad)
    if common is None and not weight.requires_grad:
        rule.requires_grad_(False)
    return new.train(old.training)
