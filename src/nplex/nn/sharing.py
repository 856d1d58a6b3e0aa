"""Who holds a rule: nobody yet, one layer, or the base of a model whose layers share it."""

import copy
import enum
import warnings
import weakref
from typing import Any, TypeVar

from torch import Tensor, nn

from nplex.ops.tracing import state_asked_of

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

    @property
    def is_shared(self) -> bool:
        """Whether several layers may use it."""
        return self.ownership is Ownership.SHARED

    def __deepcopy__(self, memo: dict) -> "Shareable":
        """A copy, free when copied alone; layers that were copied before it are given it."""
        alone = not memo
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        vars(copied).update(copy.deepcopy(vars(self), memo))
        if alone:
            copied.ownership = Ownership.FREE
        for layer in memo.get(("users", id(self)), ()):
            vars(layer)["rule"] = copied
        return copied

    def _replicate_for_data_parallel(self) -> "Shareable":
        """Torch's replica, which the replicas of layers find by its number."""
        replica: Any = super()._replicate_for_data_parallel()
        _replicas(self).note(self, replica)
        return replica

    def reset_parameters(self) -> None:
        """First values for its own tensors."""
        raise NotImplementedError


class RuleUser(nn.Module):
    """A layer with a rule of its own, or with a plain reference to a shared one.

    No attribute of the reference may outlive the model that it is part of, so whatever copies the layer sees to it:

    - deepcopy: where the copied part holds the rule, the copy uses the copied rule, in whatever order both are
      reached. Where it does not hold it, the copy goes on sharing this one.
    - pickle keeps both as they are, if both are in what is pickled.
    - torch.nn.DataParallel: the j-th replica uses the j-th replica of the rule.
    """

    def __deepcopy__(self, memo: dict) -> "RuleUser":
        copied = memo[id(self)] = self.__class__.__new__(self.__class__)
        rule = _reference(self)
        if rule is None:
            vars(copied).update(copy.deepcopy(vars(self), memo))
            return copied
        rest = {name: value for name, value in vars(self).items() if name != "rule"}
        vars(copied).update(copy.deepcopy(rest, memo), rule=memo.get(id(rule), rule))
        memo.setdefault(("users", id(rule)), []).append(copied)
        return copied

    def _replicate_for_data_parallel(self) -> "RuleUser":
        """Torch's replica; a shared rule is looked up when it is called, for it may be replicated after the layer."""
        replica: Any = super()._replicate_for_data_parallel()
        if (rule := _reference(self)) is not None:
            vars(replica)["rule"] = _RuleOfReplica(rule, _replicas(rule).number(self), weakref.ref(replica))
        return replica


class _Replicas:
    """The latest replicas of a rule. Torch makes all replicas of one module in a row: so the j-th is known."""

    def __init__(self) -> None:
        self.found: dict[int, weakref.ref[nn.Module]] = {}
        self._last: tuple[weakref.ref[nn.Module], int] | None = None

    def number(self, module: nn.Module) -> int:
        """How many times in a row this module was replicated before."""
        again = self._last is not None and self._last[0]() is module
        j = self._last[1] + 1 if self._last is not None and again else 0
        self._last = weakref.ref(module), j
        return j

    def note(self, rule: nn.Module, replica: nn.Module) -> None:
        """Remembers the next replica of the rule."""
        self.found[self.number(rule)] = weakref.ref(replica)


class _RuleOfReplica:
    """A shared rule as the j-th replica of a layer sees it.

    Called, it is the j-th replica of the rule; where a part was replicated without its rule, the rule itself on the
    device of the layer. All else is asked of the rule.
    """

    def __init__(self, rule: Shareable, j: int, layer: weakref.ref[nn.Module]) -> None:
        self.rule, self.j, self.layer = rule, j, layer

    def __call__(self) -> Any:
        found = _replicas(self.rule).found.get(self.j, lambda: None)()
        if found is not None:
            return found()
        tensors, layer = self.rule(), self.layer()
        device = next(t.device for t in vars(layer).values() if isinstance(t, Tensor))
        return tensors.to(device) if isinstance(tensors, Tensor) else type(tensors)(*(t.to(device) for t in tensors))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)


_REPLICAS: weakref.WeakKeyDictionary[nn.Module, _Replicas] = weakref.WeakKeyDictionary()


def _replicas(rule: Shareable) -> _Replicas:
    return _REPLICAS.setdefault(rule, _Replicas())


def _reference(layer: nn.Module) -> Shareable | None:
    """The shared rule that a layer refers to."""
    rule = vars(layer).get("rule")
    return rule if isinstance(rule, Shareable) else None


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
        layer.register_state_dict_pre_hook(_warn_of_missing_rules)
    else:
        rule.ownership = Ownership.OWNED
        layer.add_module("rule", rule)


def exchange_rule(layer: nn.Module, rule: Shareable) -> None:
    """Gives a layer another rule in the place of the one that it owns."""
    rule.ownership, layer._modules["rule"] = Ownership.OWNED, rule


def succeed(old: Shareable, new: Shareable) -> None:
    """Lets a new rule belong to whom the old one belongs to."""
    new.ownership = old.ownership


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
    """The names of layers whose shared rule is not registered in module: it would not train or save it.

    So it is with a part of a model whose base holds the rule, and where another rule was put at the base by hand.
    """
    present = set(map(id, module.modules()))
    rules = ((name, _reference(layer)) for name, layer in module.named_modules())
    return [name or "(the module itself)" for name, rule in rules if rule is not None and id(rule) not in present]


def check_same_dtype_and_device(rule: nn.Module, number: Tensor) -> None:
    """Refuses a rule of another type or on another device than the layer.

    Raises:
        ValueError: says both types and devices.
    """
    own = next(iter([*rule.parameters(), *rule.buffers()]))
    if (own.is_meta and not own.requires_grad) or number.is_meta:
        return  # made without memory, as accelerate does: only parameters, or all
    if (own.dtype, own.device) != (number.dtype, number.device):
        raise ValueError(
            f"the rule is {own.dtype} on {own.device}, the layer {number.dtype} on {number.device}; "
            f"make both with the same device= and dtype="
        )


_checked: Any = None  # what the last state_dict that was looked at fills in, weakly


def _warn_of_missing_rules(layer: nn.Module, prefix: str, keep_vars: Any) -> None:
    """Warns once a call of state_dict when layers in the module asked for it share a rule that is not in it."""
    global _checked
    module, destination, calls = state_asked_of()
    if module is None or (_checked is not None and _checked() is destination):
        return
    _checked = weakref.ref(destination)
    if missing := missing_rules(module):
        names = ", ".join(missing[:3]) + f" and {len(missing) - 3} more" * (len(missing) > 3)
        warnings.warn(
            f"the shared rule is not among these weights: {names} use one that is not registered in this "
            f"{type(module).__name__}; save the model that holds it, or register it: nplex.nn.missing_rules tells",
            stacklevel=calls + 1,
        )
