"""What is made of rule and components alone, kept from call to call inside nplex.nn.cached."""

import operator
import weakref
from collections.abc import Callable, Hashable, Iterable

import torch
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.ops.tracing import autocast_type, is_eager, is_recorded, version

_ACTIVE: dict[int, "Cache"] = {}  # by the identity of a parameter


class Cache:
    """The weights, blocks or tables made of one parameter, each at its first use and again when it would be stale.

    A change is seen by the tensors' identity, address and version: optimizers, load_state_dict, .to and in-place
    operations show there, except that fused optimizers and writing into `.data` or a numpy view do not; for these
    there is `clear`. While gradients are on, what is kept is part of the graph and dropped when backward reaches it.

    Attributes:
        methods: what was planned for a call, kept beside; forgotten with the rest.

    Examples:
        >>> table, components = torch.eye(2).expand(2, 2, 2), torch.ones(2, 3, 3)
        >>> cache = Cache(components)
        >>> cache.renew(table), cache.get("twice", lambda: (2 * components,))[0].shape
        (True, torch.Size([2, 3, 3]))
    """

    def __init__(self, components: Tensor) -> None:
        self.components = weakref.ref(components)
        self.methods: dict[Hashable, str] = {}
        self._values: dict[Hashable, tuple[Tensor, ...]] = {}
        self._sources: tuple[Tensor, ...] = ()
        self._state: tuple = ()

    def renew(self, rule: Tensor | BilinearAlgorithm) -> bool:
        """Forgets what rule and components no longer agree with; to be called before `get`.

        False where nothing can be kept: inference tensors have no version.
        """
        components = self.components()
        sources = (*leaves(rule), *(() if components is None else (components,)))
        if components is None or any(source.is_inference() for source in sources):
            return False
        state = _state(sources)
        if state != self._state or not all(map(operator.is_, sources, self._sources)):
            self.clear()
            self._sources, self._state = sources, state
        return True

    def get(self, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What is kept under the key, made where there is nothing."""
        values = self._values.get(key)
        if values is None:
            values = self._values[key] = make()
            for value in values:
                if value.requires_grad:
                    value.register_hook(lambda grad: self.clear())  # returns None: the gradient stays
        return values

    def clear(self) -> None:
        """Forgets everything."""
        self.methods.clear()
        self._values.clear()
        self._sources, self._state = (), ()


def activate(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Begins to keep what is made of these parameters; returns those that were not kept for already."""
    added = [p for p in parameters if id(p) not in _ACTIVE or _ACTIVE[id(p)].components() is not p]
    _ACTIVE.update({id(p): Cache(p) for p in added})
    return added


def deactivate(parameters: Iterable[Tensor]) -> None:
    """Forgets what was made of these parameters, and keeps nothing more."""
    for parameter in parameters:
        _ACTIVE.pop(id(parameter), None)


def clear(parameters: Iterable[Tensor]) -> None:
    """Forgets what was made of these parameters."""
    for parameter in parameters:
        if id(parameter) in _ACTIVE:
            _ACTIVE[id(parameter)].clear()


def kept_for(components: Tensor, rule: Tensor | BilinearAlgorithm, *others: Tensor) -> Cache | None:
    """The cache of these components, up to date; None outside nplex.nn.cached, and where nothing can be kept."""
    if torch.compiler.is_compiling() or not _ACTIVE or (torch.is_grad_enabled() and is_recorded()):
        return None
    cache = _ACTIVE.get(id(components))
    if cache is None or cache.components() is not components:
        return None
    return cache if is_eager(components, *leaves(rule), *others) and cache.renew(rule) else None


def leaves(rule: Tensor | BilinearAlgorithm) -> tuple[Tensor, ...]:
    """The tensors that a rule is held as."""
    return (rule,) if isinstance(rule, Tensor) else tuple(rule)


def _state(sources: tuple[Tensor, ...]) -> tuple:
    """What must be the same for a kept tensor to be right: addresses, versions, and the modes it was made in."""
    numbers = [(source.data_ptr(), version(source), source.requires_grad) for source in sources]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast_type(sources[-1]), numbers
