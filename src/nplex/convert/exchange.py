"""New parameters in place of old ones in an optimizer."""

from typing import Any

from torch import nn, optim

from nplex.nn import Rule

Places = dict[nn.Parameter, list[tuple[str, nn.Parameter]]]  # what comes for a parameter, each with its own name


def check_optimizer(optimizer: Any) -> None:
    """Refuses other things, and optimizers whose steps read state that new parameters would lack.

    Raises:
        TypeError: names its class.
    """
    if not isinstance(optimizer, optim.Optimizer | None) or isinstance(optimizer, optim.LBFGS | optim.Adagrad):
        raise TypeError(f"a {type(optimizer).__name__} cannot exchange its parameters; make a new one afterwards")


def exchange_rules(optimizer: optim.Optimizer, swaps: list[tuple[nn.Module, nn.Module, str]]) -> str:
    """New parameters of rules where the old ones stood, with no state; says so. Others keep place and state.

    Args:
        optimizer: it is changed; nothing is when an error is raised.
        swaps: the old rule, the new one, and the name that messages give it.

    Raises:
        ValueError: the old parameters are in several groups.
    """
    groups = _groups(optimizer)
    homes = [[groups[p] for p in old.parameters() if p in groups] for old, _, _ in swaps]
    places: Places = {}
    for (old, new, name), home in zip(swaps, homes, strict=True):
        if any(group != home[0] for group in home):
            raise ValueError(f"{name} is in several groups of the optimizer; put its factors in one")
        inside = [(key, p) for key, p in old.named_parameters() if p in groups]
        places |= {p: [] for _, p in inside} | {p: [*new.named_parameters()] for _, p in inside[:1]}
    _put(optimizer, places)
    missing = [name for (_, _, name), home in zip(swaps, homes, strict=True) if not home]
    return _summary(len(swaps), "rules replaced in their groups", missing)


def exchange_layers(
    model: nn.Module, optimizer: optim.Optimizer, swaps: list[tuple[nn.Module, nn.Module, str]]
) -> str:
    """Components where weights stood, biases where biases did; their rules beside them, without decay if it can be.

    Rules go to the end of their layer's group, or, if it has weight decay, of the first group that has none.

    Args:
        model: what holds the new layers, and knows the names of rules.
        optimizer: it is changed: the old parameters' state goes, all others keep place and state.
        swaps: torch's layer, ours, and the name that messages give it.

    Returns:
        what was done, in a sentence.
    """
    groups, spared = _groups(optimizer), [not group.get("weight_decay") for group in optimizer.param_groups]
    places: Places = {}
    rules: dict[nn.Parameter, int] = {}
    missing = []
    for old, new, name in swaps:
        fresh = dict(new.named_parameters())
        inside = [(key, p) for key, p in old.named_parameters() if p in groups]
        for key, p in inside:
            ours = key.replace("weight", "components")
            names = ("left", "right") if ours == "components" and "left" in fresh else (ours,)
            places[p] = [(name, fresh[name]) for name in names]
        if not inside:
            missing.append(name)
            continue
        own = groups[inside[0][1]]
        home = spared.index(True) if any(spared) and not spared[own] else own
        for module in (m for m in new.modules() if isinstance(getattr(m, "rule", None), Rule)):
            for p in module.rule.parameters():  # pyright: ignore - seen above
                rules.setdefault(p, home)
    _put(optimizer, places)
    names = {p: name for name, p in model.named_parameters()}
    for p, home in rules.items():
        optimizer.param_groups[home]["params"].append(p)
        optimizer.param_groups[home].get("param_names", []).append(names[p])
    return _summary(len(swaps), "layers replaced", missing)


def _summary(count: int, what: str, missing: list[str]) -> str:
    """What was done, and what the optimizer does not hold."""
    left = f"; not in it and left out: {', '.join(missing)}" * bool(missing)
    return f"optimizer: {count - len(missing)} of {count} {what}, with fresh state{left}"


def _groups(optimizer: optim.Optimizer) -> dict[nn.Parameter, int]:
    """The number of each parameter's group."""
    return {p: number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}


def _put(optimizer: optim.Optimizer, places: Places) -> None:
    """What comes for each parameter, where that stands."""
    for group in optimizer.param_groups:
        old = list(group["params"])
        if "param_names" in group:
            named = zip(old, list(group["param_names"]), strict=True)
            group["param_names"][:] = [name for p, full in named for name in _names(full, places.get(p))]
        group["params"][:] = [new for p in old for _, new in places.get(p, [("", p)])]
    for p in places:
        optimizer.state.pop(p, None)


def _names(full: str, put: list[tuple[str, nn.Parameter]] | None) -> list[str]:
    """Full names of what comes for a parameter of this full name."""
    if put is None:
        return [full]
    depth = max((key.count(".") for key, _ in put), default=0) + 1
    return [".".join([*full.split(".")[:-depth], key]) for key, _ in put]
