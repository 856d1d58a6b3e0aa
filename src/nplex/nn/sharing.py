"""Who holds a rule: nobody yet, one layer, or the base of a model whose layers share it."""

import copy
import enum
import warnings
import weakref
from typing import Any, TypeVar

from torch import Tensor, nn

Given = TypeVar("Given")
AnyRule = TypeVar("AnyRule", bound="Shareable")


class Ownership(enum.Enum):
    """Who holds a rule."""

    FREE = "free"
    OWNED = "owned by a layer"
    SHARED = "shared"


class Shareable(nn.Module):
    """A module that one layer owns, or that the base of a model holds for several layers.

    Attributes:
        ownership: FREE until a layer or a base takes it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ownership = Ownership.FREE
        self._base: weakref.ref[nn.Module] | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several layers may use it."""
        return self.ownership is Ownership.SHARED

    def __deepcopy__(self, memo: dict) -> "Shareable":
        """A copy, free when copied alone; but itself where a part of the model that shares it is copied."""
        base = None if self._base is None else self._base()
        if base is not None and memo and id(base) not in memo:
            return self
        ownership = self.ownership if memo else Ownership.FREE
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        vars(copied).update(copy.deepcopy(self.__getstate__(), memo))
        copied.ownership = ownership
        if base is not None and id(base) in memo:
            copied._base = weakref.ref(memo[id(base)])
        return copied

    def __getstate__(self) -> dict:
        """Everything but the weak reference to the base, which no file can hold."""
        return self.__dict__ | {"_base": None}

    def reset_parameters(self) -> None:
        """First values for its own tensors."""
        raise NotImplementedError


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
    if rule.ownership is not Ownership.FREE:
        raise ValueError(
            f"only a free rule can be shared, this one is {rule.ownership.value}; make a new one and share that"
        )
    register(base, rule, name)
    return rule


def register(base: nn.Module, rule: Shareable, name: str = "rule") -> None:
    """Puts a rule at its base and notes there that it is shared.

    Raises:
        ValueError: base cannot hold it.
    """
    check_base(base, name)
    mark_shared(rule)
    rule._base = weakref.ref(base)
    base.add_module(name, rule)


def mark_shared(rule: Shareable) -> None:
    """Lets layers refer to a rule that `register` is still to put at its base."""
    rule.ownership = Ownership.SHARED


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


def attach(layer: nn.Module, rule: Shareable) -> None:
    """Gives a layer its rule: registered in it, or a plain reference to a shared one.

    Raises:
        ValueError: the rule already belongs to another layer, or has another type or device than this one.
    """
    if rule.ownership is Ownership.OWNED:
        raise ValueError(
            "this rule already belongs to a layer; to use one rule in several layers, register it once at the "
            "base of the model: rule = nplex.nn.share(model, LearnedRule(n))"
        )
    check_same_dtype_and_device(rule, next(layer.parameters()))
    if rule.is_shared:
        layer.__dict__["rule"] = rule
        layer.register_state_dict_pre_hook(_warn_of_missing_rule)
    else:
        rule.ownership = Ownership.OWNED
        layer.add_module("rule", rule)


def exchange_rule(layer: nn.Module, rule: Shareable) -> None:
    """Gives a layer another rule in the place of the one that it owns."""
    rule.ownership, layer._modules["rule"] = Ownership.OWNED, rule


def succeed(old: Shareable, new: Shareable) -> None:
    """Lets a new rule belong to whom the old one belongs to."""
    new.ownership, new._base = old.ownership, old._base


def new_like(rule: Given) -> Given:
    """What a part is to be given: a free copy of a rule with new first values; a shared rule, n or an algebra itself.

    Examples:
        >>> from nplex.nn import LearnedRule
        >>> new_like(LearnedRule(4, rank=7))
        LearnedRule(n=4, rank=7)
    """
    if not isinstance(rule, Shareable) or rule.is_shared:
        return rule
    copied = copy.deepcopy(rule)
    copied.reset_parameters()
    return copied


def missing_rules(module: nn.Module) -> list[str]:
    """The names of layers whose shared rule is not registered in module: it would not train or save it."""
    present = set(map(id, module.modules()))
    rules = ((name, layer.__dict__.get("rule")) for name, layer in module.named_modules())
    return [
        name or "(the module itself)"
        for name, rule in rules
        if isinstance(rule, Shareable) and id(rule) not in present
    ]


def check_same_dtype_and_device(rule: nn.Module, number: Tensor) -> None:
    """Refuses a rule of another type or on another device than the layer.

    Raises:
        ValueError: says both types and devices.
    """
    own = next(iter([*rule.parameters(), *rule.buffers()]))
    if (own.dtype, own.device) != (number.dtype, number.device):
        raise ValueError(
            f"the rule is {own.dtype} on {own.device}, the layer {number.dtype} on {number.device}; "
            f"make both with the same device= and dtype="
        )


def _warn_of_missing_rule(layer: nn.Module, prefix: str, keep_vars: Any) -> None:
    """Warns when a layer's own state is asked for, which does not hold the rule that it shares."""
    if not prefix:
        warnings.warn("the shared rule is not among these weights; save the model that holds it", stacklevel=4)
