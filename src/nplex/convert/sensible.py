"""A ready choice of the layers that are worth converting."""

import re

from torch import nn

from nplex.convert.where import EMBEDDINGS, is_embedding

HEADS = re.compile(r"(.*_)?head|classifier|score|scores|qa_outputs|cls|embed_out|(to_)?logits")
OUTERMOST_HEADS = {
    "fc",
    "proj_out",
    "conv_out",
    "output",
    "generator",
}  # inside a model these names mean other things
ROUTERS = {"router", "gate", "gating", "wg"}
TINY = 2**12
IMAGE = 8


def sensible(name: str, module: nn.Module) -> bool | str:
    """A `where` that leaves what is seldom worth converting, each with its reason in the preview.

    Left are embeddings; output heads (by their names: `lm_head`, `classifier`, `score`, `qa_outputs`, `cls`, `head`,
    `*_head`, `logits`, and outermost `fc`, `proj_out`, `conv_out`); routers of mixtures of experts (`router`, `gate`
    with at most a quarter as many outputs as inputs); layers with fewer than 4096 weights; convolutions from or to
    fewer than 8 channels, as an image has; depthwise convolutions. A name tells little: look at the preview, and say
    otherwise with a `where` of your own, or narrow it by `all_of(sensible, only("encoder.*"))`.

    Examples:
        >>> sensible("lm_head", nn.Linear(512, 32000)), sensible("layers.0.up", nn.Linear(512, 2048))
        ('an output head by its name (lm_head)', True)
    """
    if is_embedding(module):
        return EMBEDDINGS
    parts = name.split(".")
    head = next((part for part in parts if HEADS.fullmatch(part)), None)
    if head is None and parts[0] in OUTERMOST_HEADS and len(parts) == 1:
        head = parts[0]
    if head is not None:
        return f"an output head by its name ({head})"
    if ROUTERS.intersection(parts) and 4 * getattr(module, "out_features", 4) <= getattr(module, "in_features", 0):
        return "a router by its name and its few outputs"
    weights = sum(p.numel() for p in module.parameters() if p.ndim > 1)
    if weights < TINY:
        return f"tiny: {weights:,} weights, fewer than {TINY:,}"
    inputs, outputs = getattr(module, "in_channels", None), getattr(module, "out_channels", None)
    if inputs is None or outputs is None:
        return True
    if min(inputs, outputs) < IMAGE:
        return f"a convolution {'from' if inputs < IMAGE else 'to'} {min(inputs, outputs)} channels, as an image has"
    if getattr(module, "groups", 1) == inputs:
        return "a depthwise convolution"
    return True
