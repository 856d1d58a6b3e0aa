"""Given a weight and its inputs as two factors: the product of a given rank with the nearest outputs.

`min || (W - left right) C^(1/2) ||` with C the second moment of the inputs is the truncated singular value
decomposition of `W C^(1/2)` (Eckart and Young, 1936; Wang et al., SVD-LLM, 2024).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.nn.low_rank import LowRankLinear
from nplex.nn.moments import Moments
from nplex.nn.weighted import factor_of


@torch.no_grad()
def truncate_(layer: LowRankLinear, dense: nn.Linear, moments: Moments | None = None) -> tuple[float, float]:
    """Fills a layer of n = 1 with the factors nearest to torch's layer; its bias takes up the mean error.

    Args:
        layer: it is changed.
        dense: what it is to be near.
        moments: of its inputs; None for the nearest weight, with the old bias.

    Returns:
        `|| (W - left right) C^(1/2) ||^2` and `|| W C^(1/2) ||^2`.
    """
    weight = dense.weight.detach()
    left, right, squares = _decompose(weight, moments, layer.bias is not None, layer.low_rank)
    even = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-300)).sqrt().clamp_min(1e-300)
    left, right = left * even, right / even[:, None]
    layer.left.copy_(left[None] / layer.rule.initial_norm)
    layer.right.copy_(right[None])
    if layer.bias is not None and dense.bias is not None:
        layer.bias.copy_(dense.bias)
        if moments is not None:
            mean = moments.mean.to(left)
            layer.bias.add_((weight.to(left) @ mean - left @ (right @ mean)).to(layer.bias))
    return float(squares[layer.low_rank :].sum()), float(squares.sum())


@torch.no_grad()
def spectrum(dense: nn.Linear, moments: Moments) -> Float[Tensor, "ranks"]:
    """The squared singular values of `W C^(1/2)`, the largest first: at rank r those after the first r are missed."""
    return _decompose(dense.weight.detach(), moments, dense.bias is not None, 0)[2]


def _decompose(weight: Tensor, moments: Moments | None, centred: bool, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """left, right and all squared singular values; the decomposition is as large as the smaller width."""
    if moments is None:  # all inputs count alike
        c, w = None, weight.to(torch.float64 if weight.device.type != "mps" else torch.float32)
    else:
        c = moments.blocks(1, weight.shape[1], centred=centred)[0, 0]
        w = weight.to(c)
    if w.shape[0] <= w.shape[1]:
        squares, vectors = torch.linalg.eigh((w if c is None else w @ c) @ w.mT)
        left = vectors.flip(1)[:, :rank]
        right = left.mT @ w
    else:
        root = None if c is None else factor_of(c)
        image = w if root is None else w @ root
        squares, vectors = torch.linalg.eigh(image.mT @ image)
        some = vectors.flip(1)[:, :rank]
        left, right = image @ some, some.mT
        if root is not None:
            right = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    return left, right, squares.flip(0).clamp_min(0)
