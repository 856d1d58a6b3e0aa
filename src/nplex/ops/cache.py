"""What a method makes of rule and components alone, kept until one of them changes."""

import operator

import torch
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops.bilinear import blocks
from nplex.ops.dense import expand
from nplex.ops.eager import autocast_type
from nplex.ops.factored import prepare_rule_first


class Cache:
    """One layer's weight, blocks or table, each built at its first use and again when it would be stale.

    A change is seen by the tensors' identity, address and version: optimizers, load_state_dict, .to and in-place
    operations show there, except that fused optimizers and writing into `.data` or a numpy view do not; for these
    there is `clear`. While gradients are on, what is kept is part of the graph and dropped when backward reaches it.

    Attributes:
        methods: what was planned for a call, kept beside; forgotten with the rest.

    Examples:
        >>> cache, table, components = Cache(), torch.eye(2).expand(2, 2, 2), torch.ones(2, 3, 3)
        >>> cache.renew(table, components), cache.get("dense", table, components)[0].shape
        (True, torch.Size([6, 6]))
    """

    def __init__(self) -> None:
        self.methods: dict[tuple, str] = {}
        self._values: dict[str, tuple[Tensor, ...]] = {}
        self._sources: tuple[Tensor, ...] = ()
        self._state: tuple = ()

    def renew(self, rule: Tensor | BilinearAlgorithm, components: Tensor) -> bool:
        """Forgets what rule and components no longer agree with; to be called before `get`.

        False where nothing can be kept: inference tensors have no version.
        """
        sources = (components, *leaves(rule))
        if any(source.is_inference() for source in sources):
            return False
        state = _state(sources)
        if state != self._state or not all(map(operator.is_, sources, self._sources)):
            self.clear()
            self._sources, self._state = sources, state
        return True

    def get(self, method: str, rule: Tensor | BilinearAlgorithm, components: Tensor) -> tuple[Tensor, ...]:
        """What `method` prepares: the weight, the blocks, the rule and the components in its order; or nothing."""
        values = self._values.get(method)
        if values is None:
            values = self._values[method] = prepare(method, rule, components)
            for value in values:
                if value.requires_grad:
                    value.register_hook(lambda grad: self.clear())  # returns None: the gradient stays
        return values

    def clear(self) -> None:
        """Forgets everything."""
        self.methods.clear()
        self._values.clear()
        self._sources, self._state = (), ()

    def __deepcopy__(self, memo: dict) -> None:
        """A copied layer starts without one."""

    def __reduce__(self) -> tuple:
        return type(None), ()


def leaves(rule: Tensor | BilinearAlgorithm) -> tuple[Tensor, ...]:
    """The tensors that a rule is held as."""
    return (rule,) if isinstance(rule, Tensor) else tuple(rule)


def prepare(method: str, rule: Tensor | BilinearAlgorithm, components: Tensor) -> tuple[Tensor, ...]:
    """What a method can make before it sees an input."""
    if method == "dense":
        return (expand(rule, components),)
    if method == "rule_first":
        return prepare_rule_first(rule, components)
    if method == "components_first":
        return (as_table(rule),)
    return (blocks(rule, components),) if method == "bilinear" and not isinstance(rule, Tensor) else ()


def _state(sources: tuple[Tensor, ...]) -> tuple:
    """What must be the same for a kept tensor to be right: addresses, versions, and the modes it was made in."""
    numbers = [(source.data_ptr(), source._version, source.requires_grad) for source in sources]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast_type(sources[0]), numbers
