"""Deltas in the names of Compacter's layers, as a description and tensors of ours."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nplex.files import read_tensors

_RULES = {"phm_rule", "phm_rule_left", "phm_rule_right"}
_END = re.compile(r"(?:(.*)\.)?(phm_rule|phm_rule_left|phm_rule_right|W_left|W_right|W|b)")
NAME = "default"


def read_compacter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """One adapter, from `phm_rule` n x n x n, `W_left` n x d_in/n x r and `W_right` n x r x d_out/n of each layer.

    Compacter multiplies `x sum_k kron(phm_rule[k], W_left[k] W_right[k])`, which is transposed here: our rule is
    `phm_rule[k]^T`, left `W_right[k]^T`, right `W_left[k]^T`. A rule without a layer's name is shared.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of this kind; says why.
    """
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1:
        found = f"found {len(files)} of these"
        raise FileNotFoundError(f"{path}: expected adapters.json, or one safetensors file; {found}")
    tensors, _ = read_tensors(files[0], foreign=True)
    try:
        return _adapter(tensors)
    except ValueError as error:
        raise ValueError(f"{files[0]}: {error}") from None


def _adapter(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the tensors of ours."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if not (match := _END.fullmatch(name)):
            raise ValueError(f"{name} is not a name of Compacter's (phm_rule, W_left, W_right)")
        layers.setdefault(match[1] or "", {})[match[2]] = value
    rules = {at: _rule(own) for at, own in layers.items() if own.keys() & _RULES}
    deltas = {at: _factors(at, own) for at, own in layers.items() if own.keys() - _RULES}
    free = [at for at in rules if at not in deltas]
    if len(free) > 1 or not deltas or (not free and rules.keys() != deltas.keys()):
        raise ValueError("expected one shared phm_rule or one for each layer, and W_left and W_right")
    shapes = {(left.shape[0], left.shape[2]) for left, _ in deltas.values()}
    if len(shapes) > 1:
        raise ValueError(f"its layers have several n or ranks, {sorted(shapes)}; save them apart")
    ((n, r),) = shapes
    found, sizes = {f"{NAME}/rule.table": rules[at] for at in free}, {}
    for at, (left, right) in deltas.items():
        sizes[at] = {"in": n * right.shape[2], "out": n * left.shape[1], "base": None}
        found |= {f"{NAME}/{at}.left": left, f"{NAME}/{at}.right": right}
        found |= {} if free else {f"{NAME}/{at}.rule.table": rules[at]}
    rule, numbers = {"n": n, "rank": None, "learned": True}, {"low_rank": r, "scale": 1.0, "dropout": 0.0}
    return {NAME: {"rule": rule, "shared": bool(free), **numbers, "layers": sizes}}, found


def _rule(own: dict[str, Tensor]) -> Tensor:
    """Our table; of two factors their product."""
    if "phm_rule" in own:
        return own["phm_rule"].mT
    if not {"phm_rule_left", "phm_rule_right"} <= own.keys():
        raise ValueError("phm_rule_left and phm_rule_right must both be there")
    return torch.bmm(own["phm_rule_left"], own["phm_rule_right"]).mT


def _factors(at: str, own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Our left and right, of what is a delta of low rank."""
    if not {"W_left", "W_right"} <= own.keys():
        raise ValueError(f"{at} has {', '.join(sorted(own))}; a delta has W_left and W_right (factorized_phm)")
    if "b" in own and bool(own["b"].any()):
        raise ValueError(f"{at} has a bias b, which a delta cannot hold: add it to the layer's own bias")
    if any(half in at for half in ("adapter_down", "adapter_up", "down_sampler", "up_sampler")):
        raise ValueError(
            f"{at} is half of a bottleneck adapter with a nonlinearity between, which is not a delta of a linear "
            f"layer; train a new one with nplex.adapters.add_"
        )
    first, second = own["W_left"], own["W_right"]
    if first.ndim != 3 or second.ndim != 3 or first.shape[::2] != second.shape[:2]:
        raise ValueError(
            f"{at} has W_left {tuple(first.shape)} and W_right {tuple(second.shape)}, "
            f"expected n x a x r and n x r x b"
        )
    return second.mT, first.mT
