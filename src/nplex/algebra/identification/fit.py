"""`min || (P, Q, R) A - T ||`: the distance of a table to all that an algebra becomes by changes of basis."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nplex.algebra.identification.bases import Table, balanced, starts, transformed, unital_isotopes
from nplex.algebra.levenberg_marquardt import least_squares

# For each wave of starts: how often the table is balanced before, and how many starts each algebra gets.
WAVES = ((1, 16), (0, 48), (4, 48), (2, 48), (0, 96))
# Of all starts, a quarter and then one in sixteen go on.
KEPT = 4
STEPS = 12, 20, 40
ISOTOPES = 4
EXACT = 1e-9  # below it is rounding
# The least distance that was found, and the bases there.
Nearest = tuple[float, Tensor]


def nearest(algebras: list[Table], target: Table, wave: int, generator: torch.Generator) -> list[Nearest]:
    """For each algebra the best of one wave of starts.

    Starts are made where the target is balanced, and only the better ones go on; the last descent is towards the
    target as it is, so that noise counts as it came.
    """
    rounds, count = WAVES[wave]
    even, back = balanced(target, rounds)
    isotopes = unital_isotopes(even, ISOTOPES, generator)
    bases = torch.stack([starts(algebra, isotopes, count, generator) for algebra in algebras])
    tables = torch.stack(algebras)
    made = transformed(bases, tables[:, None].expand(*bases.shape[:2], *tables.shape[1:]))
    bases[:, :, 0] /= made.flatten(2).norm(dim=2)[..., None, None]
    for steps, keep in zip(STEPS[:2], (count // KEPT, max(1, count // KEPT**2)), strict=True):
        bases, _ = _best(*_descended(tables, even, bases, steps), keep)
    bases, errors = _best(*_descended(tables, target, torch.linalg.inv(back) @ bases, STEPS[2]), 1)
    return list(zip(errors[:, 0].tolist(), bases[:, 0], strict=True))


def _descended(
    tables: Float[Tensor, "a n n n"], target: Table, bases: Float[Tensor, "a b 3 n n"], steps: int
) -> tuple[Float[Tensor, "a b 3 n n"], Float[Tensor, "a b"]]:
    """Fits all starts of all algebras in one batch; returns `|| bases A - T ||`, too."""
    shape, algebra = bases.shape[:2], torch.arange(len(tables), device="cpu").repeat_interleave(bases.shape[1])

    def residual(bases: Float[Tensor, "b 3 n n"], which: Int[Tensor, "b"]) -> Float[Tensor, "b n n n"]:
        return target - transformed(bases, tables[algebra[which]])

    equations = partial(_equations, target)
    start = bases.flatten(0, 1)
    reached, tracks = least_squares(start, residual, equations, steps=steps, tolerance=EXACT, damping=1e-2)
    return reached.unflatten(0, shape), target.new_tensor([track.error for track in tracks]).unflatten(0, shape)


def _equations(target: Table, bases: Tensor, left: Tensor, _: Tensor) -> Callable[[Tensor], Tensor]:
    """A step `P <- (1 + p) P` of each side: all that p, q, r need is the table X that the bases make.

    `J^T J` of `p X + q X + r X` comes from contractions of X with itself. The block of one side with itself is
    `[k = l] G[a, c]`, G its Gram matrix, so r is eliminated by an n x n inverse.
    """
    here, n = target - left, len(target)
    eye = torch.eye(n, dtype=here.dtype, device="cpu")
    sides, residuals = ([x.movedim(s, 1).flatten(2) for s in (1, 2, 3)] for x in (here, left))
    grams = [side @ side.mT for side in sides]
    pp, qq = (torch.einsum("kl,zac->zkalc", eye, gram).reshape(-1, n * n, n * n) for gram in grams[:2])
    forms = "zaij,zkcj->zkaic", "zaij,zkic->zkajc", "zkbj,zkic->zibjc"
    pq, pr, qr = (torch.einsum(form, here, here).reshape(-1, n * n, n * n) for form in forms)
    own, coupling = torch.cat([torch.cat([pp, pq], 2), torch.cat([pq.mT, qq], 2)], 1), torch.cat([pr, qr], 1)
    slope = torch.stack([residual @ side.mT for residual, side in zip(residuals, sides, strict=True)], dim=1)
    first, last = slope[:, :2].reshape(-1, 2 * n * n, 1), slope[:, 2].reshape(-1, n * n, 1)
    unit = here.flatten(1).square().sum(dim=1) / n

    def solve(damping: Float[Tensor, "b"]) -> Float[Tensor, "b 3 n n"]:
        added = (damping * unit)[:, None]
        over = torch.linalg.inv_ex(grams[2] + added[..., None] * eye).inverse
        share = (coupling.unflatten(2, (n, n)) @ over[:, None]).flatten(2)
        rest = own - share @ coupling.mT
        rest.diagonal(dim1=1, dim2=2).add_(added)
        moves = torch.cholesky_solve(first - share @ last, torch.linalg.cholesky_ex(rest).L)
        r = (last - coupling.mT @ moves).unflatten(1, (n, n))[..., 0] @ over
        change = torch.cat([moves.reshape(-1, 2, n, n), r[:, None]], dim=1)
        return (eye + change) @ bases

    return solve


def _best(
    bases: Float[Tensor, "a b 3 n n"], errors: Float[Tensor, "a b"], keep: int
) -> tuple[Float[Tensor, "a keep 3 n n"], Float[Tensor, "a keep"]]:
    kept = errors.argsort(dim=1)[:, :keep]
    return bases.take_along_dim(kept[..., None, None, None], 1), errors.take_along_dim(kept, 1)
