"""New parameters in place of old ones in an optimizer."""

from torch import nn, optim


def exchange(optimizer: optim.Optimizer, swaps: list[tuple[nn.Module, nn.Module, str]]) -> str:
    """New parameters where the old ones stood, with no state; says so. Other parameters keep place and state.

    Args:
        optimizer: it is changed; nothing is when an error is raised.
        swaps: the old module, the new one, and the name that messages give it.

    Raises:
        ValueError: the old parameters are in several groups.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    homes = [[groups[id(p)] for p in old.parameters() if id(p) in groups] for old, _, _ in swaps]
    for (_, _, name), home in zip(swaps, homes, strict=True):
        if any(group is not home[0] for group in home):
            raise ValueError(f"{name} is in several groups of the optimizer; put its factors in one")
    for (old, new, _), home in zip(swaps, homes, strict=True):
        gone = {id(p) for p in old.parameters()}
        for p in old.parameters():
            optimizer.state.pop(p, None)
        for group in home[:1]:
            kept_here = [id(p) not in gone for p in group["params"]]
            at, fresh = kept_here.index(False), dict(new.named_parameters())
            lists: list[tuple[list, list]] = [(group["params"], list(fresh.values()))]
            if "param_names" in group:
                prefix = "".join(group["param_names"][at].rpartition(".")[:2])
                lists.append((group["param_names"], [prefix + own for own in fresh]))
            for values, put in lists:
                kept = [value for value, keeps in zip(values, kept_here, strict=True) if keeps]
                values[:] = kept[:at] + put + kept[at:]
    missing = [name for (_, _, name), home in zip(swaps, homes, strict=True) if not home]
    left = f"; not in it and left out: {', '.join(missing)}" * bool(missing)
    count = f"{len(swaps) - len(missing)} of {len(swaps)}"
    return f"optimizer: {count} rules replaced in their groups, with fresh state{left}"
