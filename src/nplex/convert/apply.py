"""A dense model converted as a record says."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nplex import nn as nx
from nplex.convert.record import Layer, kind_of, read_record, sizes_of
from nplex.convert.references import exchange_modules
from nplex.convert.rule_record import StoredRule
from nplex.convert.survey import names_of
from nplex.convert.swap import keep_padded
from nplex.convert.twins import make_twin, twin_class
from nplex.nn import Rule
from nplex.nn.sharing import check_base, exchange_rule, mark_shared, register


def apply_(model: nn.Module, data: Any) -> Callable[[], None]:
    """Converts a dense model as the record says, in place, with fresh numbers, ready to load a state dict.

    A model converted alike already is left as it is. Nothing is changed when an error is raised.

    Args:
        model: of the architecture that was recorded; it is changed.
        data: what `record` gave, here or from a file that may be damaged.

    Returns:
        What takes it back.

    Raises:
        ValueError: the record is damaged; the model lacks one of its layers, has it in another size, or is converted
            in another way; the layer is named.
    """
    layers = read_record(data)
    change = _Change(model)
    for name in sorted(layers, key=lambda name: name.split(".")):  # a layer comes before the layers inside it
        change.add(name, layers[name])
    for name, module in change.modules.items():
        if kind_of(module) is not None and name not in layers:
            raise ValueError(f"{name or 'the model'} is hypercomplex here, but dense in what was recorded")
    return change.put_in()


def convert_like_(model: nn.Module, record: Any) -> None:
    """Converts a dense model as another one was, in place, with fresh numbers: its state dict can then be loaded.

    For checkpoints that do not know what was converted, of torch.save or accelerate: keep `nplex.record(model)`
    beside the state. A model that is converted alike is left as it is, and so is all when an error is raised.

    Args:
        model: of the architecture that was recorded.
        record: what nplex.record gave, or the same read from JSON.

    Raises:
        ValueError: the record is damaged, or the model lacks a layer of it or has it in another size; it is named.

    Examples:
        >>> from nplex.convert import convert_
        >>> from nplex.convert.record import record
        >>> trained, fresh = (nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16)) for _ in range(2))
        >>> report = convert_(trained, "4:7")
        >>> convert_like_(fresh, record(trained))
        >>> fresh.load_state_dict(trained.state_dict())
        <All keys matched successfully>
    """
    apply_(model, record)


class _Change:
    """All new layers, made before any is put in."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = names_of(model)
        self.modules = {name: module for module, names in self.names.items() for name in names}
        self.twins: dict[nn.Module, nn.Module] = {}
        self.shared: dict[str, Rule] = {}
        self.outer: str | None = None

    def add(self, name: str, layer: Layer) -> None:
        """Makes one layer, or looks whether the one that is there is as recorded."""
        if self.outer is not None and name.startswith(self.outer + "." * bool(self.outer)):
            self._add_inner(name, self.outer, layer)
            return
        self.outer, module = name, self.modules.get(name)
        if module is None:
            raise ValueError(f"{name} was recorded as a {layer.kind}, but the model has no such layer")
        if kind_of(module) is not None:
            self._check(name, module, layer)
        elif module not in self.twins:
            self.twins[module] = self._make(name, module, layer)

    def _add_inner(self, name: str, outer: str, layer: Layer) -> None:
        """A layer that came with the one around it, as attention's output projection; only its rule may differ."""
        home = self.modules[outer]
        try:
            module: Any = self.twins.get(home, home).get_submodule(name.removeprefix(outer).removeprefix("."))
        except AttributeError:
            raise ValueError(
                f"{name} was recorded as a {layer.kind}, but {outer or 'the model'} has no such layer"
            ) from None
        if home in self.twins and "rule" in module._modules and layer.shared is None:
            if not layer.rule.fits(module.rule):
                number = next(module.parameters())
                rule = layer.rule.make(number.device, number.dtype)
                if rule.n != module.rule.n:
                    raise ValueError(
                        f"{name} was recorded with n = {rule.n}, inside a layer with n = {module.rule.n}"
                    )
                exchange_rule(module, rule)
            _freeze(module.rule, layer.rule)
        self._check(name, module, layer)

    def _check(self, name: str, module: nn.Module, layer: Layer) -> None:
        """Looks whether a hypercomplex layer is as recorded."""
        rule = getattr(module, "rule", None)
        if kind_of(module) != layer.kind or not isinstance(rule, Rule) or not layer.rule.fits(rule):
            raise ValueError(f"{name or 'the model'} was recorded as {layer.summary}; the model has {_found(module)}")
        path = layer.shared
        holder = None if path is None else self.shared.get(path, self.modules.get(path))
        if rule.is_shared != (path is not None) or (path is not None and holder is not rule):
            where = "its own" if path is None else f"shared at {path!r}"
            raise ValueError(f"the rule of {name or 'the model'} was recorded as {where}; in the model it is not")
        _check_sizes(name, module, layer)

    def _make(self, name: str, module: nn.Module, layer: Layer) -> nn.Module:
        """A twin of a dense layer, with fresh numbers."""
        if not name:
            raise ValueError("the model is itself a dense layer and cannot be replaced in place")
        kind: Any = getattr(nx, layer.kind)
        has_low_rank = kind is nx.LowRankLinear and twin_class(module) is nx.Linear
        if twin_class(module) is not kind and not has_low_rank:
            raise ValueError(f"{name} was recorded as a {layer.kind}, the model has {_found(module)} there")
        try:
            number = next(module.parameters())
            widest = max(size for parameter in module.parameters() for size in parameter.shape)
            if layer.rule.n > widest:  # before memory for its table is asked for
                raise ValueError(f"n = {layer.rule.n} is larger than its widths")
            rule = self._rule(layer, number.device, number.dtype)
            twin = make_twin(module, rule, layer.sizes.get("low_rank", 0) if has_low_rank else None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} was recorded as {layer.summary}: {error}") from None
        _freeze(rule, layer.rule)
        _check_sizes(name, twin, layer)
        return twin

    def _rule(self, layer: Layer, device: torch.device, dtype: torch.dtype) -> Rule:
        """A fresh rule, or the shared one."""
        if layer.shared is None:
            return layer.rule.make(device, dtype)
        if layer.shared not in self.shared:
            found = self.modules.get(layer.shared)
            if isinstance(found, Rule):  # another layer of this model uses it already
                self.shared[layer.shared] = found
            else:
                check_base(*self._base(layer.shared))
                rule = self.shared[layer.shared] = layer.rule.make(device, dtype)
                mark_shared(rule)
        if not layer.rule.fits(self.shared[layer.shared]):
            raise ValueError(f"its shared rule {layer.shared} is recorded in two ways")
        return self.shared[layer.shared]

    def _base(self, path: str) -> tuple[nn.Module, str]:
        """The module that holds a shared rule, and the attribute."""
        parent, _, name = path.rpartition(".")
        if parent not in self.modules or not name.isidentifier():
            raise ValueError(f"its rule is recorded as shared at {path!r}, where the model has no place for it")
        return self.modules[parent], name

    def put_in(self) -> Callable[[], None]:
        """Puts all in; gives what takes it back."""
        new = [(*self._base(at), rule) for at, rule in self.shared.items() if self.modules.get(at) is not rule]
        for base, name, rule in new:
            register(base, rule, name)
        exchange_modules(self.model, self.twins)
        stacks = keep_padded(self.model)

        def take_back() -> None:
            for stack in stacks:
                stack.use_nested_tensor = True
            exchange_modules(self.model, {twin: old for old, twin in self.twins.items()})
            for base, name, _ in new:
                delattr(base, name)

        return take_back


def _check_sizes(name: str, module: nn.Module, layer: Layer) -> None:
    for key, size in sizes_of(module).items():
        if layer.sizes.get(key, size) != size:
            recorded = f"{key} = {layer.sizes[key]!r:.50}, the model has {size}"
            raise ValueError(f"{name or 'the model'} was recorded with {recorded}: build the model in that size")


def _freeze(rule: Rule, stored: StoredRule) -> None:
    if stored.is_frozen:
        rule.requires_grad_(False)


def _found(module: nn.Module) -> str:
    rule = getattr(module, "rule", None)
    return f"a {type(module).__name__}" + (f" with {rule}" if isinstance(rule, Rule) else "")
