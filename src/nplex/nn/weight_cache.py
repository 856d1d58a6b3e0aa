"""Weights that are built once for many calls."""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from nplex.ops import cache


@contextlib.contextmanager
def cached(module: nn.Module) -> Iterator[None]:
    """Inside, the layers of the module build what their methods make of rule and components once, for all calls.

    Linear, attention's projections, recurrent layers and cells, and convolutions. For generation and evaluation,
    where layers are called many times with the same numbers, and for layers that are called several times in one
    training step. What is kept is built anew after a step of any torch optimizer, after
    load_state_dict, .to and in-place operations on the parameters, and after a backward through it. Only writing
    into `.data` or a numpy view inside the context is not seen; leave it for that. Parameters that are exchanged
    inside for new ones are right too, but nothing is kept for them.

    Costs memory until it ends: d_out d_in numbers a layer for the dense method, R / n^2 or 1 / n of that for the
    others.

    Args:
        module: a model or a layer; torch.compile and export ignore the context.

    Examples:
        >>> import torch
        >>> from nplex.nn import Linear
        >>> layer = Linear(512, 512, rule=4)
        >>> with torch.no_grad(), cached(layer):
        ...     y = [layer(torch.ones(100, 512)) for _ in range(10)]
    """
    parameters = cache.activate(module.parameters())

    def clear(optimizer: object, args: tuple, kwargs: dict) -> None:
        cache.clear(parameters)

    hook = register_optimizer_step_post_hook(clear)
    try:
        yield
    finally:
        hook.remove()
        cache.deactivate(parameters)
