"""Sums of millions of products that leave few numbers, as the gradient of a rule is."""

import torch
from jaxtyping import Float
from torch import Tensor

# So many products are added by one small matmul. As a single matmul the sum would be one tile, the work of one of an
# accelerator's many processors.
TERMS = 2**11


def products_summed(left: Float[Tensor, "p t c"], right: Float[Tensor, "q t c"]) -> Float[Tensor, "p q"]:
    """`[p, q] = sum_tc left[p, t, c] right[q, t, c]`: one matmul on a CPU, elsewhere and in float16 `in_groups`."""
    if as_one_matmul(left):
        return torch.mm(left.flatten(1), right.flatten(1).mT)
    return in_groups(left, right)


def as_one_matmul(tensor: Tensor) -> bool:
    """Whether this device and type do best with a single matmul."""
    return tensor.device.type == "cpu" and tensor.dtype != torch.float16


def in_groups(left: Float[Tensor, "p t c"], right: Float[Tensor, "q t c"]) -> Float[Tensor, "p q"]:
    """The same as a batch of matmuls, a group of t each, added in float32 or more: the same bits at each call.

    In float16 the products are added in float32 too: it would overflow where a dense layer's gradients, sums over
    tokens alone, do not.
    """
    exact = torch.promote_types(left.dtype, torch.float32)
    if left.dtype == torch.float16:
        left, right = left.float(), right.float()
    _, t, c = left.shape
    size = max(1, TERMS // max(c, 1))
    count = t // size
    total = None
    if count:
        groups = (x[:, : count * size].unflatten(1, (count, size)).transpose(0, 1).flatten(2) for x in (left, right))
        total = torch.bmm(next(groups), next(groups).mT).sum(0, dtype=exact)
    if total is None or count * size < t:
        rest = torch.mm(left[:, count * size :].flatten(1), right[:, count * size :].flatten(1).mT)
        total = rest.to(exact) if total is None else total + rest
    return total


def add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total[p, q] += sum_tc left[p, t, c] right[q, t, c]`."""
    if as_one_matmul(left):
        add_matmul(total, left.flatten(1), right.flatten(1).mT)
    else:
        total += in_groups(left, right)


def add_matmul(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right`."""
    if total.dtype != left.dtype:
        total += left @ right
    elif total.ndim == 3:
        total.baddbmm_(left, right)
    else:
        total.addmm_(left, right)
