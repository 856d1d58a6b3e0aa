"""Which laws a multiplication table keeps, computed from its numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

Table = Float[Tensor, "n n n"]


def unit(table: Table) -> Float[Tensor, "n"] | None:
    """The e with `sum_k e_k table[k, i, j] = [i = j]` and `sum_j e_j table[k, i, j] = [i = k]`, or None."""
    n = table.shape[0]
    equations = torch.cat([table.reshape(n, n * n).mT, table.permute(1, 0, 2).reshape(n * n, n)])
    wanted = torch.eye(n, dtype=table.dtype, device=table.device).reshape(-1).repeat(2)
    found = torch.linalg.lstsq(equations, wanted[:, None], driver="gelsd").solution[:, 0]
    found = torch.where(found.abs() < 1e-12 * found.abs().max(), 0.0, found)
    return found if _zero(equations @ found - wanted) else None


def commutative(table: Table) -> bool:
    """`x * y = y * x`."""
    return _zero(_scaled(table) - _scaled(table).transpose(0, 2))


def associative(table: Table) -> bool:
    """`(x * y) * z = x * (y * z)`."""
    return _zero(associator(_scaled(table)))


def alternative(table: Table) -> bool:
    """`(x * x) * y = x * (x * y)` and `(y * x) * x = y * (x * x)`."""
    defect = associator(_scaled(table))
    left, right = defect + defect.transpose(0, 1), defect + defect.transpose(1, 2)
    return _zero(left) and _zero(right)


def normed(table: Table) -> bool:
    """`|x * y| = |x| |y|` in the Euclidean norm.

    Only n = 1, 2, 4 and 8 can have it. Source: Hurwitz, Ueber die Composition der quadratischen Formen (1898).
    """
    n = table.shape[0]
    products = torch.einsum("kij,lim->kjlm", table, table)
    symmetric = products + products.transpose(0, 2)
    symmetric = symmetric + symmetric.transpose(1, 3)
    eye = torch.eye(n, dtype=table.dtype, device=table.device)
    return _zero(symmetric - 4 * torch.einsum("kl,jm->kjlm", eye, eye))


LAWS = {"commutative": commutative, "associative": associative, "alternative": alternative, "normed": normed}


def associator(table: Table) -> Float[Tensor, "n n n n"]:
    """`(e_k e_l) e_m - e_k (e_l e_m)`, indexed k, l, m and then the component."""
    left = torch.einsum("kpl,pim->klmi", table, table)
    right = torch.einsum("lqm,kiq->klmi", table, table)
    return left - right


def _scaled(table: Table) -> Table:
    """With a largest entry of 1: these laws do not depend on the scale."""
    largest = table.abs().max()
    return table / largest if largest > 0 else table


def _zero(residual: Tensor) -> bool:
    """True when the residual of a law is no more than rounding."""
    return bool(residual.abs().max() <= 1e-9)
