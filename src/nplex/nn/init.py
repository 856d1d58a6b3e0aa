"""First values: a rule of a known size, and components such that W has the variance of torch's own layer."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.algebra import as_table
from nplex.ops.tracing import is_distributed

__all__ = ["like_"]

Layer = TypeVar("Layer", bound=nn.Module)
# Below this relative error W is what an initialiser without random numbers gives.
SAME = 1e-3


@torch.no_grad()
def table_(table: Float[Tensor, "n n n"], *, norm: float) -> None:
    """Fills each `table[k]` with a multiple of a random orthogonal matrix: `|| table[k] ||_F = norm / sqrt(n)`.

    Every output and every input component then takes part with the same weight, whatever the draw.
    """
    write_(table, torch.stack([_orthogonal(table) for _ in range(len(table))]) * (norm / len(table)))


@torch.no_grad()
def factors_(
    encode_component: Float[Tensor, "n R"],
    encode_input: Float[Tensor, "n R"],
    decode: Float[Tensor, "n R"],
    *,
    norm: float,
) -> None:
    """Fills the factors with random (semi-)orthogonal matrices, scaled: `|| table[k] ||_F = norm / sqrt(n)`.

    At R = n the layer is an orthogonal mixing, a block-diagonal product and another orthogonal mixing.
    """
    first, second, third = (_orthogonal(factor) for factor in (encode_component, encode_input, decode))
    n, gram = len(first), (second.mT @ second) * (third.mT @ third)
    faces = torch.einsum("kr,rs,ks->k", first, gram, first).sqrt()
    first = first * (faces.mean() / faces)[:, None]
    scale = (norm / n**0.5 / faces.mean()) ** (1 / 3)
    for factor, value in zip((encode_component, encode_input, decode), (first, second, third), strict=True):
        write_(factor, scale * value)


@torch.no_grad()
def components_(components: Float[Tensor, "n *block"], *, rule_norm: float, bound: float) -> None:
    """`U(-c, c)` with `c = n bound / rule_norm`.

    The mean variance of W is `rule_norm^2 / n^2` times that of the components, so W gets `bound^2 / 3`, the variance
    of `U(-bound, bound)`; torch.nn.Linear has `bound = 1 / sqrt(in_features)`.
    """
    uniform_(components, components.shape[0] * bound / rule_norm)


def uniform_(tensor: Tensor, limit: float) -> None:
    """`U(-limit, limit)`."""
    fill_(tensor, lambda whole: nn.init.uniform_(whole, -limit, limit))


@torch.no_grad()
def fill_(tensor: Tensor, fn: Callable[[Tensor], Any]) -> None:
    """`fn(tensor)`; of a sharded tensor `fn` fills the whole, and each process keeps its part.

    So first values are those of a model in one process, on any number of processes. Torch's own initialisers draw
    each shard alone: on CPUs, with one seed everywhere, all shards would be equal.
    """
    if not is_distributed(tensor):
        fn(tensor)
    elif not tensor.is_meta:
        fn(whole := torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device))
        write_(tensor, whole)


@torch.no_grad()
def write_(tensor: Tensor, values: Tensor, *, drawn: bool = True) -> None:
    """`tensor <- values`, of a sharded tensor each process its part; those drawn by the first process, for all."""
    if is_distributed(tensor):
        from torch.distributed.tensor import distribute_tensor

        whole, sharded = values.to(tensor.device, tensor.dtype), cast(Any, tensor)
        source = 0 if drawn else None
        values = distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=source)
    tensor.copy_(values)


def like_(layer: Layer, fn: Callable[[Tensor], Any]) -> Layer:
    """`W <- s P(D)`: D as `fn` fills a dense weight, P(D) the nearest W of the rule, `s = ||D|| / ||P(D)||`.

    So W has the mean square of D, and the mean where that is 0: the size that the initialiser is chosen for. An
    initialiser without random numbers is kept as it is (s = 1): zeros are always possible, others where the rule can
    give them. Rules are not changed. Every weight of the layer is filled, those of its parts too.

    Args:
        layer: a layer of nplex, or a module that holds some; other modules in it are left alone.
        fn: fills the tensor that it is given, as those of torch.nn.init.

    Returns:
        The layer.

    Raises:
        ValueError: there is no layer of nplex, or the rule cannot give what fn gives.

    Examples:
        >>> from nplex.nn import Linear
        >>> layer = like_(Linear(256, 256, rule=4), lambda weight: nn.init.trunc_normal_(weight, std=0.02))
        >>> round(float(layer.weight.detach().std()), 3)
        0.02
        >>> bool(like_(layer, nn.init.zeros_).weight.any())
        False
    """
    found = [
        (part, name)
        for part in layer.modules()
        for name, _ in part.named_parameters(recurse=False)
        if hasattr(part, "rule") and ("components" in name or name == "left")
    ]
    if not found:
        raise ValueError(
            f"{type(layer).__name__} has no layer of nplex; give torch's weight to the initialiser itself"
        )
    for part, name in found:
        _fill(part, name, fn)
    return layer


def _fill(layer: Any, name: str, fn: Callable[[Tensor], Any]) -> None:
    """One weight of a layer, by its components; from those of low rank the nearest of that rank."""
    shown = "weight" if name == "left" else name.replace("components", "weight")
    kept = [p for key, p in layer.named_parameters(recurse=False) if key in (name, "right")]
    old = [p.detach().clone() for p in kept]
    drawn, again = (torch.zeros_like(getattr(layer, shown).detach().clone()) for _ in range(2))
    with torch.no_grad():
        fn(drawn)
        fn(again)
        nearest = _nearest(layer, name, shown, drawn)
        for parameter, value in zip(kept, nearest, strict=True):
            parameter.copy_(value)
        came, size = getattr(layer, shown).double(), drawn.double().norm()
        if torch.equal(drawn, again):
            if (came - drawn).norm() <= SAME * size:
                return
            for parameter, value in zip(kept, old, strict=True):
                parameter.copy_(value)
            raise ValueError(
                f"the rule of this {type(layer).__name__} cannot give the {shown} that the initialiser gives; take "
                f"a random one, or zeros"
            )
        for parameter in kept:
            parameter.mul_((size / came.norm()) ** (1 / len(kept)))


def _nearest(layer: Any, name: str, shown: str, drawn: Tensor) -> list[Tensor]:
    """Components of the least `||W - D||`: `G^-1 b`, `G[k, l] = <rule[k], rule[l]>`, `b[k] = dW/dcomponents[k] D`."""
    table = as_table(layer.rule()).detach().double()
    n, gram = table.shape[0], table.flatten(1) @ table.flatten(1).mT
    if name == "left":
        a, b = layer.left.shape[1], layer.right.shape[2]
        padded = F.pad(drawn.double(), (0, n * b - drawn.shape[1], 0, n * a - drawn.shape[0]))
        right = torch.einsum("kij,iajb->kab", table, padded.reshape(n, a, n, b))
    else:
        components, trained = layer.get_parameter(name), layer.get_parameter(name).requires_grad
        try:
            with torch.enable_grad():
                components.requires_grad_()
                (right,) = torch.autograd.grad(getattr(layer, shown), components, drawn)
        finally:
            components.requires_grad_(trained)
        right = right.double()
    solved = (torch.linalg.pinv(gram) @ right.flatten(1)).reshape(right.shape)
    if name != "left":
        return [solved]
    u, s, v = torch.linalg.svd(solved, full_matrices=False)
    u, s, v = u[..., : layer.low_rank], s[..., : layer.low_rank].sqrt(), v[..., : layer.low_rank, :]
    return [u * s[:, None, :], s[..., None] * v]


def _orthogonal(like: Tensor) -> Float[Tensor, "rows columns"]:
    """A random (semi-)orthogonal matrix of the size of like's last two dimensions, in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.nn.init.orthogonal_(torch.empty(like.shape[-2:], dtype=dtype, device=like.device))
