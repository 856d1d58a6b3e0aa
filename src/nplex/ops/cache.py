"""What a method makes of rule and components alone, kept until one of them changes."""

from typing import NamedTuple

import torch
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.ops.bilinear import blocks
from nplex.ops.dense import expand
from nplex.ops.eager import autocast_type
from nplex.ops.factored import prepare_rule_first


class _Entry(NamedTuple):
    values: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]
    state: tuple


class Cache:
    """One layer's weight, blocks or table, each built at its first use and again when it would be stale.

    A change is seen by the tensors' identity, address and version: optimizers, load_state_dict, .to and in-place
    operations show there, except that fused optimizers and writing into `.data` or a numpy view do not; for these
    there is `clear`. While gradients are on, what is kept is part of the graph and dropped when backward reaches it.

    Examples:
        >>> cache, table, components = Cache(), torch.eye(2).expand(2, 2, 2), torch.ones(2, 3, 3)
        >>> cache.get("dense", table, components) is cache.get("dense", table, components)
        True
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def get(self, method: str, rule: Tensor | BilinearAlgorithm, components: Tensor) -> tuple[Tensor, ...]:
        """What `method` prepares: the weight, the blocks, the rule and the components in its order; or nothing."""
        sources = (components, *leaves(rule))
        if any(source.is_inference() for source in sources):
            return ()  # such tensors have no version
        entry, state = self._entries.get(method), _state(sources)
        if entry is not None and entry.state == state and all(map(_is, entry.sources, sources)):
            return entry.values
        values = prepare(method, rule, components)
        self._entries[method] = _Entry(values, sources, state)
        for value in values:
            if value.requires_grad:
                value.register_hook(lambda grad: self.clear())  # returns None: the gradient stays
        return values

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()

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


def _is(one: Tensor, other: Tensor) -> bool:
    return one is other


def _state(sources: tuple[Tensor, ...]) -> tuple:
    """What must be the same for a kept tensor to be right: addresses, versions, and the modes it was made in."""
    numbers = [(source.data_ptr(), source._version, source.requires_grad) for source in sources]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), autocast_type(sources[0]), numbers
