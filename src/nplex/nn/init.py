"""First values: a rule of a known size, and components such that W has the variance of torch's own layer."""

import torch
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def table_(table: Float[Tensor, "n n n"]) -> None:
    """Fills each `table[k]` with a random orthogonal matrix: `|| table ||_F = n`, as a quaternion's.

    Every output and every input component then takes part with the same weight, whatever the draw.
    """
    table.copy_(torch.stack([_orthogonal(table) for _ in table]))


@torch.no_grad()
def factors_(
    encode_component: Float[Tensor, "n R"], encode_input: Float[Tensor, "n R"], decode: Float[Tensor, "n R"]
) -> None:
    """Fills the factors with random (semi-)orthogonal matrices, scaled so that the table has norm n.

    At R = n the layer is an orthogonal mixing, a block-diagonal product and another orthogonal mixing.
    """
    first, second, third = (_orthogonal(factor) for factor in (encode_component, encode_input, decode))
    gram = (first.mT @ first) * (second.mT @ second) * (third.mT @ third)
    scale = (first.shape[0] / gram.sum().sqrt()) ** (1 / 3)
    for factor, value in zip((encode_component, encode_input, decode), (first, second, third), strict=True):
        factor.copy_(scale * value)


@torch.no_grad()
def components_(components: Float[Tensor, "n *block"], *, rule_norm: float, bound: float) -> None:
    """`U(-c, c)` with `c = n bound / rule_norm`.

    The mean variance of W is `rule_norm^2 / n^2` times that of the components, so W gets `bound^2 / 3`, the variance
    of `U(-bound, bound)`; torch.nn.Linear has `bound = 1 / sqrt(in_features)`.
    """
    limit = components.shape[0] * bound / rule_norm
    torch.nn.init.uniform_(components, -limit, limit)


@torch.no_grad()
def normal_components_(components: Float[Tensor, "n *block"], *, rule_norm: float, std: float = 1.0) -> None:
    """`N(0, (n std / rule_norm)^2)`: W gets the variance `std^2`, with 1 that of torch.nn.Embedding."""
    torch.nn.init.normal_(components, std=components.shape[0] * std / rule_norm)


@torch.no_grad()
def bias_(bias: Float[Tensor, "d_out"], *, bound: float) -> None:
    """`U(-bound, bound)`; torch.nn.Linear has `bound = 1 / sqrt(in_features)`."""
    torch.nn.init.uniform_(bias, -bound, bound)


def _orthogonal(like: Tensor) -> Float[Tensor, "rows columns"]:
    """A random (semi-)orthogonal matrix of the size of like's last two dimensions, in float32 or better."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.nn.init.orthogonal_(torch.empty(like.shape[-2:], dtype=dtype, device=like.device))
