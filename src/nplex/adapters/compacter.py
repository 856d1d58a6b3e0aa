"""Deltas in the names of Compacter's layers, as a description and tensors of ours."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nplex.files import read_tensors

_RULES = ("phm_rule", "phm_rule_left", "phm_rule_right")
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
        raise FileNotFoundError(
            f"{path}: expected adapters.json, or one safetensors file; found {len(files)} of these"
        )
    tensors, _ = read_tensors(files[0], foreign=True)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if not (match := _END.fullmatch(name)):
            raise ValueError(f"{files[0]}: {name} is not a name of Compacter's (phm_rule, W_left, W_right)")
        layers.setdefault(match[1] or "", {})[match[2]] = value
    rules = {at: _rule(files[0], layers[at]) for at in layers if layers[at].keys() & set(_RULES)}
    deltas = {at: own for at, own in layers.items() if own.keys() - set(_RULES)}
    free = [at for at in rules if at not in deltas]
    if len(free) > 1 or not deltas or not rules:
        raise ValueError(f"{files[0]}: expected one shared phm_rule or one for each layer, and W_left and W_right")
    shared, found, sizes, shapes = bool(free), {}, {}, set()
    for at, own in deltas.items():
        _check(files[0], at, own)
        left, right = own["W_right"].mT.contiguous(), own["W_left"].mT.contiguous()
        if not shared and at not in rules:
            raise ValueError(f"{files[0]}: {at} has no phm_rule, and none is shared")
        (n, a, r), b = left.shape, right.shape[2]
        shapes.add((n, r))
        sizes[at] = {"in": n * b, "out": n * a, "base": None}
        found |= {f"{NAME}/{at}.left": left, f"{NAME}/{at}.right": right}
        found[f"{NAME}/{'' if shared else at + '.'}rule.table"] = rules[free[0] if shared else at].mT.contiguous()
    if len(shapes) > 1:
        raise ValueError(f"{files[0]}: its layers have several n or ranks {sorted(shapes)}; save them apart")
    ((n, r),) = shapes
    rule = {"n": n, "rank": None, "learned": True}
    numbers = {"low_rank": r, "scale": 1.0, "dropout": 0.0}
    return {NAME: {"rule": rule, "shared": shared, **numbers, "layers": sizes}}, found


def _rule(path: Path, own: dict[str, Tensor]) -> Tensor:
    """The table of a layer, or the one that is shared; of two factors their product."""
    if "phm_rule" in own:
        return own["phm_rule"]
    if {"phm_rule_left", "phm_rule_right"} <= own.keys():
        return torch.bmm(own["phm_rule_left"], own["phm_rule_right"])
    raise ValueError(f"{path}: phm_rule_left and phm_rule_right must both be there")


def _check(path: Path, at: str, own: dict[str, Tensor]) -> None:
    """Refuses what is not a delta of low rank."""
    if not {"W_left", "W_right"} <= own.keys():
        raise ValueError(
            f"{path}: {at} has {', '.join(sorted(own))}; a delta has W_left and W_right (factorized_phm)"
        )
    if "b" in own and bool(own["b"].any()):
        raise ValueError(f"{path}: {at} has a bias b, which a delta cannot hold: add it to the layer's own bias")
    if "adapter_down" in at or "adapter_up" in at or "down_sampler" in at or "up_sampler" in at:
        raise ValueError(
            f"{path}: {at} is half of a bottleneck adapter with a nonlinearity between, which is not a delta of a "
            f"linear layer; train a new one with nplex.adapters.add_"
        )
    left, right = own["W_left"], own["W_right"]
    if left.ndim != 3 or right.ndim != 3 or left.shape[0] != right.shape[0] or left.shape[2] != right.shape[1]:
        raise ValueError(
            f"{path}: {at} has W_left {tuple(left.shape)} and W_right {tuple(right.shape)}, "
            f"expected n x a x r and n x r x b"
        )
