"""One walk over a model: replace layers by their twins, keep tied modules tied, report what was kept and why."""

from dataclasses import replace

import torch
from torch import nn, optim

from nplex.convert.exchange import check_optimizer, exchange_layers
from nplex.convert.references import exchange_modules
from nplex.convert.report import Report, Row
from nplex.convert.spec import Choice, Conversion, Rules
from nplex.convert.survey import Survey, base_of, survey, zeros
from nplex.convert.twins import is_layer, make_twin, untransposed
from nplex.convert.where import Where
from nplex.nn import Rule
from nplex.nn.nearest import nearest_
from nplex.nn.sharing import mark_shared, register


def preview(
    model: nn.Module, rule: Rules, *, where: Where | None = None, shared: bool = False, weights: str = "fresh"
) -> Report:
    """Reports what `convert_` would change, and why it skips a layer; changes nothing, takes no memory.

    Args:
        model: any model; on the meta device too.
        rule: n, an algebra, or a rule; or a mapping from patterns of names to these, see convert_.
        where: which layers, by name and module; see `only`, `all_but` and `sensible`. None for all but embeddings.
        shared: whether all converted layers of a rule use one.
        weights: as in convert_; the nearest ones need numbers that are finite.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
        >>> print(preview(model, rule=4, where=lambda name, module: name == "0"))
        layer  was              was_parameters  now                      now_parameters
        0      Linear(64, 256)          16,640  Linear(64, 256, rule=4)           4,416
        2      Linear(256, 8)            2,056  skipped                           2,056  not selected by where
        1 of 2 layers change: 18,696 -> 6,472 parameters in all (34.6 %)
    """
    return survey(model, Conversion(rule, where, shared, weights)).report


def convert_(
    model: nn.Module,
    rule: Rules,
    *,
    where: Where | None = None,
    shared: bool = False,
    weights: str = "fresh",
    optimizer: optim.Optimizer | None = None,
) -> Report:
    """Replaces torch's layers by their twins with 1/n of the parameters, in place.

    Linear, Bilinear, convolutions and transposed ones, recurrent layers and cells, MultiheadAttention, and, where
    `where` asks for them, embeddings; wherever they are in the model. A layer used at several places is replaced by
    one layer at all of them; layers already converted are left alone; a weight tied to another module stays dense.
    All new layers are made before any is put in, so that nothing is changed when an error is raised; for that time
    the model needs 1/n more memory. Make the optimizer afterwards (one made before holds the old weights) or pass it,
    then train.

    Args:
        model: any model that contains such layers; it is changed.
        rule: n, an algebra, or a rule; each layer gets a fresh one of its own like it. A rule that is shared
            already (`nplex.nn.share`) is used itself. Or a mapping from patterns of full names to these,
            `{"encoder.*": 4, "decoder.*": quaternion}`: the first that matches counts, None skips a layer,
            and so does no match.
        where: which layers, by name and module; see `only`, `all_but` and `sensible`. It answers True, False, or a
            text, the reason to skip. None for all but embeddings. A layer with several names is taken if all are.
        shared: one rule for all converted layers, registered as `model.rule` (of transformers' models with a head
            as `model.base_model.rule`); with a mapping one for each of its rules: `rule`, `rule_1`, ...
        weights: "fresh" first values, or those "nearest" to the old weights, with the old biases; the report tells
            how near. An error of .8 is usual for n = 4: a start for training, no replacement for it.
        optimizer: one that holds the old weights; it is changed too. Components and biases stand where weights and
            biases stood, with fresh state; rules beside them, or in the first group without weight decay if they
            have one. Rates are not changed: right for Adam and learned rules, see nplex.optim for others.

    Raises:
        TypeError: the model is not a module, the rule no rule, or the optimizer none that can be changed.
        ValueError: no layer can be converted (the reasons are named), or the model is itself such a layer, is
            wrapped already, has adapters, or cannot hold a shared rule.

    Examples:
        >>> model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 256, batch_first=True), 2)
        >>> report = convert_(model, {"*.self_attn": 2, "*": 4})
        >>> report.rows[0].was, model.layers[0].linear1.rule
        ('MultiheadAttention(64, heads=4)', LearnedRule(n=4))
    """
    check_optimizer(optimizer)
    found = survey(model, Conversion(rule, where, shared, weights))
    changed = [row for row in found.report.rows if row.changes]
    if not changed:
        if any(map(is_layer, model.modules())):
            return found.report
        raise ValueError(f"nothing to convert in {type(model).__name__}:\n{found.report}")
    return _exchange(model, found, changed, weights, optimizer)


def _exchange(
    model: nn.Module, found: Survey, changed: list[Row], weights: str, optimizer: optim.Optimizer | None
) -> Report:
    """Makes all new layers, then puts them in."""
    common: dict[Choice, Rule] = {}
    old = [model.get_submodule(row.name) for row in changed]
    twins = [_twin(layer, found.choices[row.name], common) for layer, row in zip(old, changed, strict=True)]
    report = replace(found.report, done=True)
    if weights == "nearest":
        common_rules = [common[choice] for choice in common if not choice.registers]
        errors = nearest_([(twin, untransposed(layer)) for twin, layer in zip(twins, old, strict=True)], common_rules)
        report = report.with_errors(dict(zip((row.name for row in changed), errors, strict=True)))
    for name, choice in found.shared:
        register(base_of(model), common[choice].train(model.training), name)
    exchange_modules(model, dict(zip(old, twins, strict=True)))
    if optimizer is not None:
        swaps = zip(old, twins, (row.name for row in changed), strict=True)
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
        return _keep_zeros(make_twin(old, own), old)
    if choice not in common:
        common[choice] = choice.fresh(number.device, number.dtype) if choice.registers else choice.template
        mark_shared(common[choice])
    return _keep_zeros(make_twin(old, common[choice]), old)


@torch.no_grad()
def _keep_zeros(twin: nn.Module, old: nn.Module) -> nn.Module:
    """Sets components to zero where the old weight was, with the bias beside it: an initialiser chose these."""
    own, before = dict(twin.named_parameters()), dict(old.named_parameters())
    for name in zeros(old):
        own[name.replace("weight", "components")].zero_()
        bias = name.replace("weight", "bias")
        if bias in before:
            own[bias].copy_(before[bias])
    return twin
