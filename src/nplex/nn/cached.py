"""Weights that are built once for many calls."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nplex.nn.linear import Linear
from nplex.ops.cache import Cache

LAYERS = (Linear,)


@contextlib.contextmanager
def cached(module: nn.Module) -> Iterator[None]:
    """Inside, each Linear of the module builds what its method makes of rule and components once, for all calls.

    For generation and evaluation, where layers are called many times with the same numbers, and for layers that are
    called several times in one training step. What is kept is never stale: it is built anew after a step of any
    torch optimizer, after load_state_dict, .to and in-place operations on the parameters, and after a backward
    through it. Only writing into `.data` or a numpy view inside the context is not seen; leave it for that. Costs
    memory: d_out d_in numbers a layer for the dense method, R / n^2 or 1 / n of that
    for the others, until it ends.

    Args:
        module: a model or a layer; torch.compile and export ignore the context.

    Examples:
        >>> import torch
        >>> layer = Linear(512, 512, rule=4)
        >>> with torch.no_grad(), cached(layer):
        ...     y = [layer(torch.ones(100, 512)) for _ in range(10)]
    """
    layers = [layer for layer in module.modules() if isinstance(layer, LAYERS) and layer.cache is None]

    def clear(optimizer: object, args: tuple, kwargs: dict) -> None:
        for layer in layers:
            if layer.cache is not None:
                layer.cache.clear()

    hook = register_optimizer_step_post_hook(clear)
    try:
        for layer in layers:
            layer.cache = Cache()
        yield
    finally:
        hook.remove()
        for layer in layers:
            layer.cache = None
