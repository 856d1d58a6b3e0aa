"""Back to plain torch: every layer of ours becomes torch's, with the same outputs."""

from torch import nn
from torch.nn.utils import parametrize

from nplex.convert.reasons import HOOKS, check_model, has_hooks, special
from nplex.convert.references import References, exchange_modules
from nplex.convert.report import FoldReport, FoldRow, label
from nplex.convert.survey import names_of
from nplex.convert.twins import is_layer, is_ours, make_dense, our_class, shadow
from nplex.nn import Rule


def fold_(model: nn.Module) -> FoldReport:
    """Converts all layers of ours back to torch layers with the same outputs, in place.

    Weights are built once, `W = sum_k kron(rule[k], components[k])`, and have the size of dense ones. Modes and what
    is trained stay; a layer used at several places is folded once; a shared rule that nothing uses any more is
    removed from its base. Stacks, as `nplex.nn.TransformerEncoder`, become torch's too. The rules are gone
    afterwards: save the model before. Layers with hooks, of classes derived from ours, and held where they cannot be
    exchanged are skipped, with the reason in the report. All new layers are made before any is put in.

    Args:
        model: it is changed.

    Raises:
        TypeError: the model is not a module.
        ValueError: nothing can be folded; or the model is itself a layer of ours, or is wrapped.

    Examples:
        >>> from nplex import nn as nx
        >>> model = nn.Sequential(nx.Linear(64, 256, rule=4), nn.ReLU())
        >>> print(fold_(model))
        layer  was                      now
        0      Linear(64, 256, rule=4)  Linear(64, 256)
        1 of 1 layers folded: 4,416 -> 16,640 parameters
        an optimizer made before holds the old parameters: make a new one
    """
    check_model(model)
    if is_ours(model) and type(model) is our_class(model):
        raise ValueError("the model is itself a layer and cannot be replaced in place; use model.to_torch()")
    names = names_of(model)
    parts = {part for module in names if is_layer(module) for part in module.modules() if part is not module}
    ours = {module: places for module, places in names.items() if is_ours(module) and module not in parts}
    references = References(model)
    reasons = {m: _reason(m) or references.reason(m, lambda part: isinstance(part, Rule)) for m in ours}
    new: dict[nn.Module, nn.Module] = {}
    for module in (module for module in ours if not reasons[module]):
        try:
            new[module] = make_dense(module) if is_layer(module) else shadow(module).to_torch()
        except ValueError as error:
            reasons[module] = str(error)
    if not new:
        described = "".join(f"\n{ours[module][0]}: {reason}" for module, reason in reasons.items())
        raise ValueError(f"nothing to fold in {type(model).__name__}:{described or ' it has no layer of nplex'}")
    before = sum(p.numel() for p in model.parameters())
    rules = {rule for layer in new for rule in _references(layer)}
    rows = []
    for module, (first, *also) in ours.items():
        was, now = label(module, getattr(module, "rule", None)), label(new[module]) if module in new else None
        rows.append(FoldRow(first, tuple(also), was, now, reasons[module]))
    for module, dense in new.items():
        if not is_layer(module):  # a stack: its parts are exchanged as the others
            for name, child in module._modules.items():
                setattr(dense, name, child)
    exchange_modules(model, new)
    removed = _remove_unused(model, rules)
    return FoldReport(tuple(rows), removed, before, sum(p.numel() for p in model.parameters()))


def _reason(layer: nn.Module) -> str:
    """Why a layer cannot be folded, or nothing."""
    ours = our_class(layer)
    if ours is not None and type(layer) is not ours and not parametrize.is_parametrized(layer):
        return f"{type(layer).__name__} is a subclass of nplex's {ours.__name__}, which may do more"
    if "adapters" in layer._modules:
        return "has adapters: save and remove_ them first, nplex.adapters.load them afterwards"
    # a layer that shares its rule has a hook for its state, which warns
    kinds = tuple(name for name in HOOKS if name != "_state_dict_pre_hooks")
    parts = layer.modules() if is_layer(layer) else [layer]
    if any(has_hooks(part, kinds) for part in parts) or "forward" in vars(layer):
        return special(layer) or "has hooks or its own forward, which would be lost"
    return ""


def _references(layer: nn.Module) -> list[Rule]:
    """The shared rules that a layer and its parts refer to."""
    return [rule for part in layer.modules() if isinstance(rule := vars(part).get("rule"), Rule)]


def _remove_unused(model: nn.Module, rules: set[Rule]) -> tuple[str, ...]:
    """Takes shared rules that no module refers to any more from their base; gives their names."""
    used = {id(v) for module in model.modules() for v in vars(module).values() if isinstance(v, Rule)}
    places = [
        (name, module, key)
        for name, module in model.named_modules()
        for key, child in module._modules.items()
        if isinstance(child, Rule) and child in rules and id(child) not in used
    ]
    for _, module, key in places:
        delattr(module, key)
    return tuple(f"{name}.{key}" if name else key for name, _, key in places)
