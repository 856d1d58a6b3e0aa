"""What is skipped by default, as it is small or all depends on it: embeddings, output heads, routers."""

import re

from torch import nn
from torch.nn.parameter import is_lazy

BY_DEFAULT = EMBEDDING, HEAD, ROUTER = "an embedding", "an output head", "a router"
HEADS = re.compile(r"(.*_)?head|classifier|score|scores|qa_outputs|cls|embed_out|(to_)?logits")
OUTERMOST_HEADS = {"fc", "proj_out", "conv_out", "output", "generator"}  # inside a model they mean other things
ROUTERS = {"router", "gate", "gating", "wg"}


def default_reason(name: str, module: nn.Module) -> str:
    """Why a layer of this name is skipped by default, or nothing."""
    if is_embedding(module):
        return EMBEDDING
    few = 4 * getattr(module, "out_features", 4) <= getattr(module, "in_features", 0)
    if few and ROUTERS.intersection(name.split(".")):
        return f"{ROUTER} by its name and its few outputs"
    return output_head(name)


def output_head(name: str) -> str:
    """Why a layer of this name is taken for an output head, or nothing."""
    found = name if name in OUTERMOST_HEADS else next(filter(HEADS.fullmatch, name.split(".")), None)
    return "" if found is None else f"{HEAD} by its name ({found})"


def head_by_place(model: nn.Module) -> dict[nn.Module, str]:
    """The last layer of a model where it is an output head whatever its name, with the reason; or nothing.

    It is linear, its width is that of no other layer, and it gives a number for each row of an embedding, or a
    quarter as many numbers as it takes, or fewer.
    """
    layers = [m for m in model.modules() if any(p.ndim > 1 for p in _own(m))]
    if len(layers) < 2 or type(last := layers[-1]) is not nn.Linear:
        return {}
    rows = {m.num_embeddings for m in layers if is_embedding(m)}
    widths = {size for m in model.modules() if m is not last for p in _own(m) for size in _widths(m, p)}
    if last.out_features in widths:
        return {}
    if last.out_features in rows:
        return {last: f"{HEAD}: the last layer, with an output for each row of an embedding"}
    few = 4 * last.out_features <= last.in_features
    return {last: f"{HEAD}: the last layer, with {last.out_features} outputs that no layer takes"} if few else {}


def is_embedding(module: nn.Module) -> bool:
    """Whether it is one of torch's embeddings."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _widths(module: nn.Module, parameter: nn.Parameter) -> tuple[int, ...]:
    """The sizes of a parameter that are widths: neither of kernels nor of lengths, nor rows of an embedding."""
    if hasattr(module, "kernel_size"):
        return parameter.shape[:2]
    return parameter.shape[1:] if is_embedding(module) else parameter.shape[-2:] if parameter.ndim < 3 else ()


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters(recurse=False) if not is_lazy(p)]
