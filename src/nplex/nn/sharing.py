"""One rule for many layers: registered once at the base of a model, referred to by its layers."""

import warnings
import weakref
from typing import TypeVar

from torch import nn

from nplex.nn.rule import Rule

AnyRule = TypeVar("AnyRule", bound=Rule)


def share(base: nn.Module, rule: AnyRule, name: str = "rule") -> AnyRule:
    """Registers a rule once, at the base of a model; layers that are given it then hold a reference.

    The base must contain every layer that uses the rule: what saves, moves or trains a part of the model alone
    does not see the rule. `missing_rules` tells.

    Args:
        base: the module that holds the rule, as a rule the whole model.
        rule: not yet given to a layer.
        name: the attribute of base.

    Raises:
        ValueError: the rule belongs to a layer already, or base cannot hold it: see check_base.

    Examples:
        >>> from nplex.nn import LearnedRule, Linear
        >>> model = nn.Module()
        >>> rule = share(model, LearnedRule(4))
        >>> model.up, model.down = Linear(8, 16, rule=rule), Linear(16, 8, rule=rule)
        >>> [name for name, _ in model.named_parameters() if "rule" in name]
        ['rule.table']
    """
    if rule.place != "free":
        raise ValueError(f"only a free rule can be shared, this one is {rule.place}; make a new one and share that")
    register(base, rule, name)
    return rule


def register(base: nn.Module, rule: Rule, name: str = "rule") -> None:
    """Puts a rule at its base and notes there that it is shared.

    Raises:
        ValueError: base cannot hold it.
    """
    check_base(base, name)
    rule.place, rule._base = "shared", weakref.ref(base)
    base.add_module(name, rule)


def check_base(base: nn.Module, name: str = "rule") -> None:
    """Refuses a module that cannot hold a rule under this name.

    Raises:
        ValueError: base calls or lists its children, or has such an attribute.
    """
    if isinstance(base, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        raise ValueError(
            f"a {type(base).__name__} calls or lists its children and a shared rule would be one of them; make it "
            f"part of a module of your own, self.net = ..., and share the rule there"
        )
    if hasattr(base, name):
        raise ValueError(f"{type(base).__name__} already has an attribute {name!r}, a shared rule needs a free name")


def attach(layer: nn.Module, rule: Rule) -> None:
    """Gives a layer its rule: registered in it, or a plain reference to a shared one.

    Raises:
        ValueError: the rule already belongs to another layer.
    """
    if rule.place == "owned":
        raise ValueError(
            "this rule already belongs to a layer; to use one rule in several layers, register it once at the "
            "base of the model: rule = nplex.nn.share(model, LearnedRule(n))"
        )
    if rule.place == "shared":
        layer.__dict__["rule"] = rule
        layer.register_state_dict_pre_hook(_warn_of_missing_rule)
    else:
        rule.place = "owned"
        layer.add_module("rule", rule)


def missing_rules(module: nn.Module) -> list[str]:
    """The names of layers whose shared rule is not registered in module: it would not train or save it."""
    held = set(map(id, module.modules()))
    rules = ((name, layer.__dict__.get("rule")) for name, layer in module.named_modules())
    return [name or "(the module itself)" for name, rule in rules if isinstance(rule, Rule) and id(rule) not in held]


def _warn_of_missing_rule(layer: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Warns when a layer's own state is asked for, which does not hold the rule that it shares."""
    if not prefix:
        warnings.warn("the shared rule is not among these weights; save the model that holds it", stacklevel=4)
