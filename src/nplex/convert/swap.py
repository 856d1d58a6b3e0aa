"""One walk over a model: replace layers by their twins, keep tied modules tied, report what was kept and why."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn, optim

from nplex.convert.calibration import judged, observe
from nplex.convert.exchange import check_optimizer, exchange_layers
from nplex.convert.references import exchange_modules
from nplex.convert.report import Report
from nplex.convert.spec import Choice, Conversion, Rules
from nplex.convert.survey import Survey, base_of, survey, zeros
from nplex.convert.twins import is_layer, make_twin, untransposed
from nplex.convert.where import Layers
from nplex.nn import Rule
from nplex.nn.nearest import nearest_
from nplex.nn.sharing import mark_shared, register


def preview(
    model: nn.Module,
    rule: Rules,
    *,
    where: Layers | None = None,
    everything: bool = False,
    shared: bool = False,
    weights: str = "fresh",
    calibration: Iterable[Any] | None = None,
) -> Report:
    """Reports what `convert_` would change, and why it skips a layer; changes nothing, takes no memory.

    With calibration it makes the new layers, says how near their outputs come, and how near two factors of the same
    size would (rule="low-rank:..."), and throws all of them away.

    Args:
        model: any model; on the meta device too, without calibration.
        rule: as in convert_.
        where: which layers, as in convert_.
        everything: as in convert_.
        shared: whether all converted layers of a rule use one.
        weights: as in convert_; the nearest ones need numbers that are finite.
        calibration: as in convert_; the weights are the nearest then.

    Raises:
        TypeError: as convert_.
        ValueError: as convert_ for the model, the rule and the calibration.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
        >>> print(preview(model, rule=4))
        layer  was              now           parameters
        0      Linear(64, 256)  rule=4   16,640 -> 4,416
        2      Linear(256, 8)   skipped            2,056
            an output head: the last layer, with 8 outputs that no layer takes
        1 of 2 layers change: 18,696 -> 6,472 parameters in all (34.6 %)
        1 of them dense by default; to convert them too: everything=True (--everything)
    """
    if calibration is None:
        return survey(model, Conversion(rule, where, shared, weights, everything)).report
    found = survey(model, Conversion(rule, where, shared, "nearest", everything))
    return replace(_prepare(model, found, "nearest", calibration, compare=True).report, done=False)


def convert_(
    model: nn.Module,
    rule: Rules,
    *,
    where: Layers | None = None,
    everything: bool = False,
    shared: bool = False,
    weights: str = "fresh",
    calibration: Iterable[Any] | None = None,
    optimizer: optim.Optimizer | None = None,
) -> Report:
    """Replaces torch's layers by their twins with 1/n of the parameters, in place.

    Every layer of torch.nn with weights has a twin; embeddings, output heads and routers change only where they are
    asked for. A layer used at several places is replaced by one layer at all of them; layers already converted are
    left alone; a weight tied to another module stays dense. All new layers are made before any is put in, so that
    nothing is changed when an error is raised; for that time the model needs 1/n more memory. Make the optimizer
    afterwards (one made before holds the old weights) or pass it, then train.

    Args:
        model: any model that contains such layers; it is changed.
        rule: n, an algebra, or a rule; each layer gets a fresh one of its own like it. A rule that is shared
            already (`nplex.nn.share`) is used itself. Or what else nplex.nn.as_rule takes: "4:7", a table, a .json
            file. Or "low-rank:128" for two factors of that rank in the place of a linear layer's weight
            (nplex.nn.LowRankLinear of n = 1), "low-rank:0.5" for half its size. Or a mapping from patterns of names
            to these, `{"encoder.*": 4, "decoder.*": "quaternion"}`: the first that matches counts, None skips.
        where: which layers: names or patterns, as "encoder" or ["q_proj", "*.up"]; or a function of name and module
            that answers True, False, or a text, the reason to skip; see `only`, `all_but` and `sensible`. None for
            all but embeddings, output heads and routers. A layer with several names is taken if all are.
        everything: whether embeddings, heads and routers are converted too.
        shared: one rule for all converted layers, registered as `model.rule` (of transformers' models with a head
            as `model.base_model.rule`); with a mapping one for each of its rules: `rule`, `rule_1`, ...
        weights: "fresh" first values, or those "nearest" to the old weights, with the old biases; the report tells
            how near. An error of .8 is usual for n = 4: a start for training, no replacement for it.
        calibration: batches of what the model takes (tensors, tuples of arguments, or mappings as of tokenizers):
            nearest are then the outputs on them, and biases take up the mean error. The model runs once on each;
            memory is width^2 numbers for each different input, and three times that for the layer being fitted.
            Layers that no batch ran, recurrent and transposed ones get the nearest weights; the report says so.
        optimizer: one that holds the old weights; it is changed too. Components and biases stand where weights and
            biases stood, with fresh state; rules beside them, or in the first group without weight decay if they
            have one. Rates are not changed: right for Adam and learned rules, see nplex.optim for others.

    Raises:
        TypeError: the model is not a module, the rule no rule, or the optimizer none that can be changed.
        ValueError: no layer can be converted (reasons are named); the model is itself such a layer, is wrapped, has
            adapters, or cannot hold a shared rule; calibration is empty, not taken, or not finite in a layer.

    Examples:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 2)
        >>> report = convert_(model, {"*.self_attn": 2, "*": 4})
        >>> report.rows[0].was, model.layers[0].linear1.rule
        ('MultiheadAttention(64, heads=4)', LearnedRule(n=4))
    """
    check_optimizer(optimizer)
    if calibration is not None and weights != "nearest":
        raise ValueError(f'calibration is for weights="nearest", got weights={weights!r}')
    found = survey(model, Conversion(rule, where, shared, weights, everything))
    if not found.choices:
        return _unchanged(model, found.report)
    return _put_in(model, found, _prepare(model, found, weights, calibration), optimizer)


def _unchanged(model: nn.Module, report: Report) -> Report:
    """The report of a model that is converted already; refuses one in which nothing can be converted."""
    if not any(map(is_layer, model.modules())):
        raise ValueError(f"nothing to convert in {type(model).__name__}:\n{report}")
    return report


class _Prepared(NamedTuple):
    """New layers that are not yet put in: the old ones, theirs, the shared rules, and the report."""

    old: list[nn.Module]
    twins: list[nn.Module]
    common: dict[Choice, Rule]
    report: Report


@torch.inference_mode(False)  # parameters that are made within it could not be fitted, nor trained later
def _prepare(
    model: nn.Module, found: Survey, weights: str, calibration: Iterable[Any] | None, *, compare: bool = False
) -> _Prepared:
    """Makes all new layers, after a calibration; on demand with the error of low rank beside theirs."""
    rows = [row for row in found.report.rows if row.changes]
    old = [model.get_submodule(row.name) for row in rows]
    names = [row.name for row in rows]
    inputs = {} if calibration is None else observe(model, dict(zip(names, old, strict=True)), calibration)
    common: dict[Choice, Rule] = {}
    twins = [_twin(layer, found.choices[name], common) for layer, name in zip(old, names, strict=True)]
    report = replace(found.report, done=True)
    if weights == "nearest":
        common_rules = [common[choice] for choice in common if not choice.registers]
        pairs = [(twin, untransposed(layer)) for twin, layer in zip(twins, old, strict=True)]
        known = [inputs.get(name, {}) for name in names]
        errors = nearest_(pairs, common_rules, known)
        rows = [replace(row, error=error) for row, error in zip(rows, errors, strict=True)]
        if calibration is not None:
            rows = [judged(row, known[i], pairs[i], compare=compare) for i, row in enumerate(rows)]
        by_name = dict(zip(names, rows, strict=True))
        report = replace(report, rows=tuple(by_name.get(row.name, row) for row in report.rows))
    return _Prepared(old, twins, common, report)


def _put_in(model: nn.Module, found: Survey, new: _Prepared, optimizer: optim.Optimizer | None) -> Report:
    """Puts new layers in; gives their report."""
    report = new.report
    for name, choice in found.shared:
        register(base_of(model), new.common[choice].train(model.training), name)
    exchange_modules(model, dict(zip(new.old, new.twins, strict=True)))
    if optimizer is not None:
        swaps = zip(new.old, new.twins, (row.name for row in report.rows if row.changes), strict=True)
        report = replace(report, optimizer=exchange_layers(model, optimizer, [*swaps]))
    keep_padded(model)
    return report


def keep_padded(model: nn.Module) -> list[nn.TransformerEncoder]:
    """Lets torch's stacks give our layers padded tensors, as they take no ragged ones; gives those changed."""
    stacks = [m for m in model.modules() if isinstance(m, nn.TransformerEncoder) and any(map(is_layer, m.modules()))]
    changed = [stack for stack in stacks if stack.use_nested_tensor]
    for stack in changed:
        stack.use_nested_tensor = False
    return changed


def _twin(old: nn.Module, choice: Choice, common: dict[Choice, Rule]) -> nn.Module:
    """A fresh layer in the place of an old one, with a rule of its own or the one of its choice."""
    number = next(old.parameters())
    if not choice.shares:
        own = choice.rule if isinstance(choice.rule, int) else choice.fresh(number.device, number.dtype)
    elif choice in common:
        own = common[choice]
    else:
        own = common[choice] = choice.fresh(number.device, number.dtype) if choice.registers else choice.template
        mark_shared(own)
    return _keep_zeros(make_twin(old, own, choice.low_rank(untransposed(old))), old)


@torch.no_grad()
def _keep_zeros(twin: nn.Module, old: nn.Module) -> nn.Module:
    """Sets components to zero where the old weight was, with the bias beside it: an initialiser chose these."""
    own, before = dict(twin.named_parameters()), dict(old.named_parameters())
    for name in zeros(old):
        components = name.replace("weight", "components")
        own[components if components in own else "left"].zero_()
        bias = name.replace("weight", "bias")
        if bias in before:
            own[bias].copy_(before[bias])
    return twin
