"""Reasons to skip a layer, or to refuse a model: what a replacement would lose or break."""

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from nplex.convert.twins import TWINS, is_layer

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WRAP = "change the model first, wrap it then"
WRAPPERS = {
    "DataParallel": WRAP, "DistributedDataParallel": WRAP, "FullyShardedDataParallel": WRAP, "FSDPModule": WRAP,
    "DeepSpeedEngine": WRAP, "OptimizedModule": "change the model first, compile it then",
    "ScriptModule": "change the model first, script it then",
}  # fmt: skip
PEFT: dict[str, str] = dict.fromkeys(
    ("PeftModel", "BaseTuner", "BaseTunerLayer", "LycorisBaseModule"),
    "merge or unload the adapters first (model.merge_and_unload()); afterwards nplex.adapters.add_ adds new ones to "
    "dense and converted layers alike, peft to dense ones alone",
)
MERGED = "_merged_adapters"  # where a layer keeps what is merged
OURS = {"Deltas": "merge them first (nplex.adapters.merge_(model, keep=False)) or save and remove them"}
QUANTIZED = {"bitsandbytes", "torchao", "gptqmodel", "auto_gptq", "awq", "hqq", "quanto", "optimum", "eetq", "aqlm"}
OWN_HOOKS = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}
HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def check_model(model: nn.Module) -> None:
    """Refuses what is not a module, or wrapped, so that its layers must not be exchanged.

    Raises:
        TypeError: the model is not a module.
        ValueError: it or a part is wrapped; says what to do instead.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}")
    _refuse(model, WRAPPERS, "is wrapped")


def check_no_adapters(model: nn.Module, *, ours: bool = False) -> None:
    """Refuses a model with adapters, whose weights must stay as they are; `ours` lets those of nplex pass.

    Raises:
        ValueError: names the part.
    """
    _refuse(model, PEFT if ours else PEFT | OURS, "has adapters")
    check_not_merged(model)


def check_not_merged(model: nn.Module) -> None:
    """Refuses a model that keeps adapters beside weights into which one is merged.

    Raises:
        ValueError: says how to go on.
    """
    if any(MERGED in vars(module) for module in model.modules()):
        raise ValueError(
            "an adapter is merged into this model: unmerge_ it first; or merge it for good, merge_(model, keep=False)"
        )


def special(module: nn.Module) -> str:
    """The reason to skip a layer that is quantized, parametrized, pruned, normalised or compiled, or nothing."""
    path, has_size = type(module).__module__, hasattr(module, "in_features") or hasattr(module, "in_channels")
    package = path.split(".")[0]
    if has_size and (package in QUANTIZED or ".quantized" in path):
        return (
            f"{type(module).__name__} of {package} is quantized: convert the model in full precision, quantize then"
        )
    if not isinstance(module, tuple(TWINS)) and not is_layer(module):
        return ""
    if parametrize.is_parametrized(module):
        names = ", ".join(module.parametrizations)  # pyright: ignore - a ModuleDict
        return f"its {names} is parametrized: make that permanent first (parametrize.remove_parametrizations)"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            return f"its {hook._tensor_name} is pruned: make that permanent first (prune.remove)"
        if type(hook).__name__ in OWN_HOOKS and type(hook).__module__.startswith("torch.nn.utils"):
            return f"has {type(hook).__name__}: make that permanent first ({OWN_HOOKS[type(hook).__name__]})"
    return ""


def lost(module: Any) -> str:
    """The reason to skip a layer of which something would be lost, or nothing."""
    for name, parameter in module.named_parameters():
        if type(parameter) is not nn.Parameter:
            kind = type(parameter).__name__
            return f"its {name} is a {kind}, quantized or distributed: convert the plain model first"
        if parameter.dtype not in FLOATS:
            wanted = "not floating point of 16, 32 or 64 bits: load the model in such a type"
            return f"its {name} is {parameter.dtype}, {wanted}"
    kinds = {(p.dtype, p.device) for p in module.parameters()}
    if len(kinds) > 1:
        return f"its numbers are of several kinds: {', '.join(sorted(f'{t} on {d}' for t, d in kinds))}"
    parts = [*module.modules()]
    if any("forward" in vars(part) for part in parts):
        return "has its own forward, which would be lost"
    if any(has_hooks(part) for part in parts):
        return "has hooks, which would be lost"
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        return "is compiled: convert the model first, compile it then"
    return ""


def has_hooks(module: nn.Module, kinds: tuple[str, ...] = HOOKS) -> bool:
    """Whether a module or its own parameters have hooks."""
    own = module.parameters(recurse=False)
    return any(getattr(module, kind) for kind in kinds) or any(
        p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None) for p in own
    )


def _refuse(model: nn.Module, kinds: dict[str, str], what: str) -> None:
    """Raises a ValueError if a module's class or one that it descends from has one of the names."""
    for name, module in model.named_modules():
        found = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in kinds]
        if found:
            raise ValueError(f"{name or 'the model'} {what} ({', '.join(sorted(found))}); {kinds[found[0]]}")
