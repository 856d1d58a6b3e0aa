"""The conversion of a model as plain JSON data; what comes from a file is checked."""

from typing import Any, NamedTuple

from torch import nn

from nplex import nn as nx
from nplex.convert.reasons import special
from nplex.convert.rule_record import StoredRule, read_rule, rule_record
from nplex.convert.twins import is_layer
from nplex.nn import Rule

FORMAT = 1
_KEYS = {"format", "rules", "layers"}
_LAYER_KEYS = {"kind", "rule", "sizes", "shared"}


class Layer(NamedTuple):
    """What a record says of one layer.

    Attributes:
        kind: the name of its class in nplex.nn.
        rule: how its rule is made.
        sizes: its widths and other whole numbers, by their attributes' names.
        shared: where the rule is registered if it is shared, else None.
    """

    kind: str
    rule: StoredRule
    sizes: dict[str, Any]
    shared: str | None

    @property
    def summary(self) -> str:
        """`a Linear with n = 4, rank 7`, as messages name it."""
        rule = self.rule.data
        name = rule.get("algebra", f"n = {self.rule.n}")
        return f"a {self.kind} with {name}" + f", rank {rule['rank']}" * (rule["rank"] is not None)


def record(model: nn.Module) -> dict[str, Any]:
    """Which layers of a model are hypercomplex, and with which rules: JSON data without weights.

    `{"format": 1, "rules": [{"n": 4, "rank": None, "learned": True}], "layers": {"up": {"kind": "Linear", "rule": 0,
    "sizes": {"in_features": 8, "out_features": 8}}}}`; a layer whose rule is shared has `"shared": "rule"` too, the
    place where that is registered. A rule that is described alike for many layers stands there once.

    Raises:
        ValueError: a shared rule is registered outside the model, or a rule is of the user's own class;
            or a layer of ours is parametrized or pruned.

    Examples:
        >>> model = nn.Sequential(nx.Linear(8, 16, rule=2), nn.ReLU(), nn.Linear(16, 8))
        >>> list(record(model)["layers"]), record(model)["rules"]
        (['0'], [{'n': 2, 'rank': None, 'learned': True}])
    """
    holders = {module: name for name, module in model.named_modules() if isinstance(module, Rule)}
    rules: list[dict[str, Any]] = []
    layers: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if is_layer(module) and (reason := special(module)):
            raise ValueError(f"{name or 'the model'} cannot be written: {reason}")
        kind = kind_of(module)
        if kind is None:
            continue
        rule: Rule = module.rule  # pyright: ignore - each of our layers has one
        try:
            description = rule_record(rule)
        except ValueError as error:
            raise ValueError(f"{name or 'the model'}: {error}") from None
        if description not in rules:
            rules.append(description)
        layers[name] = {"kind": kind, "rule": rules.index(description), "sizes": sizes_of(module)}
        if rule.is_shared:
            if rule not in holders:
                raise ValueError(
                    f"the rule of {name or 'the layer'} is shared and registered outside this model; take the whole "
                    f"model, as nplex.nn.missing_rules tells"
                )
            layers[name]["shared"] = holders[rule]
    return {"format": FORMAT, "rules": rules, "layers": layers}


def read_record(data: Any) -> dict[str, Layer]:
    """The layers of a record by name, checked; no memory is asked for yet.

    Raises:
        ValueError: it is damaged, hostile, or of a newer format; says what was expected.
    """
    if not isinstance(data, dict) or not isinstance(data.get("format"), int):
        raise ValueError(f"a conversion is an object with a format number, got {type(data).__name__}")
    if data["format"] > FORMAT:
        raise ValueError(
            f"the conversion has format {data['format']}, this nplex reads up to {FORMAT}; "
            f"pip install --upgrade nplex"
        )
    if data["format"] < 1 or data.keys() != _KEYS:
        raise ValueError(f"a conversion of format {FORMAT} has {', '.join(sorted(_KEYS))}; got {sorted(data)}")
    if not isinstance(data["rules"], list) or not isinstance(data["layers"], dict):
        raise ValueError("rules must be a list, and layers an object")
    stored = [read_rule(rule) for rule in data["rules"]]
    return {name: _read_layer(name, layer, stored) for name, layer in data["layers"].items()}


def kind_of(module: nn.Module) -> str | None:
    """The name in nplex.nn of one of our layers; None for other modules, and for a user's subclasses of ours."""
    if not type(module).__module__.startswith(nx.__name__ + ".") or isinstance(module, Rule):
        return None
    if not isinstance(getattr(module, "rule", None), Rule):
        return None
    return next((kind.__name__ for kind in type(module).__mro__ if kind.__name__ in nx.__all__), None)


def _read_layer(name: str, data: Any, stored: list[StoredRule]) -> Layer:
    """One layer's entry, checked."""
    if not isinstance(data, dict) or not {"kind", "rule", "sizes"} <= data.keys() <= _LAYER_KEYS:
        raise ValueError(f"{name}: a layer has {', '.join(sorted(_LAYER_KEYS))}; got {data!r:.200}")
    kind, rule, sizes, shared = data["kind"], data["rule"], data["sizes"], data.get("shared")
    if not isinstance(kind, str) or kind not in nx.__all__ or not hasattr(getattr(nx, kind), "like"):
        raise ValueError(f"{name}: no layer of this nplex is called {kind!r}")
    if isinstance(rule, bool) or not isinstance(rule, int) or not 0 <= rule < len(stored):
        raise ValueError(f"{name}: its rule must be the number of one of {len(stored)} rules, got {rule!r}")
    if not isinstance(sizes, dict) or not isinstance(shared, str | None):
        raise ValueError(f"{name}: sizes must be an object, and shared a name")
    return Layer(kind, stored[rule], sizes, shared)


def sizes_of(module: nn.Module) -> dict[str, Any]:
    """All whole numbers among a layer's public attributes: widths, kernels, strides, heads."""
    values = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    lists = {key: list(value) if isinstance(value, tuple) else [value] for key, value in values.items()}
    whole = {key: entries for key, entries in lists.items() if all(type(entry) is int for entry in entries)}
    return {key: entries if isinstance(values[key], tuple) else entries[0] for key, entries in whole.items()}
