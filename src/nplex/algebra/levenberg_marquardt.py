"""Damped least squares (Levenberg-Marquardt), many starts at once: the one such loop of the project.

The loop knows neither the unknowns nor how a damped step is solved for; both are functions that a caller gives.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST_DAMPING, MOST_DAMPING = 1e-17, 1e6
# A refused step raises the damping by this factor.
RAISE = 3.0
# A start ends when its error falls by less than a twentieth within the window.
SLOW = 0.95
# Below this error nothing is penalised.
PENALTY_ENDS = 1e-2


class Fit(NamedTuple):
    """Where a batch of starts stands.

    Attributes:
        unknowns: b x ...
        residual: b x ...
        error: b, `|| residual ||`.
        damping: b, of the next step.
        steps: b, steps taken; refused ones do not count.
        refused: b, whether the last step tried was refused.
        stuck: b, whether a start ended because its error stood still or no damping lowered it.
        trail: b x (window + 1) x 2, `|| residual ||` and `|| unknowns ||` after the last steps, the latest last.
        which: b, the numbers of these starts among all.
    """

    unknowns: Tensor
    residual: Tensor
    error: Float[Tensor, "b"]
    damping: Float[Tensor, "b"]
    steps: Int[Tensor, "b"]
    refused: Bool[Tensor, "b"]
    stuck: Bool[Tensor, "b"]
    trail: Float[Tensor, "b window 2"]
    which: Int[Tensor, "b"]


@torch.no_grad()
def least_squares(
    start: Tensor,
    residual: Callable[[Tensor, Tensor], Tensor],
    equations: Callable[[Fit, Tensor], Callable[[Tensor], Tensor]],
    *,
    steps: int = 100,
    tolerance: float = 1e-12,
    damping: float = 0.1,
    penalty: float = 0.0,
    window: int = 15,
) -> Fit:
    """Lowers `|| residual(x) ||^2 + weight || x ||^2` from each start x; one start does not affect another.

    `weight` is `penalty || residual ||^2` at the last step, and zero once the error is below 0.01. A step that does
    not lower the sum is refused, and tried again with three times the damping. A step that does eases the damping:
    by 2, by 5 if it left less than 0.7 of the error, by 100 if less than 0.1, and not at all right after a refusal.

    A start ends when its error is a tenth of the tolerance, or the tolerance and the last step did not halve it; when
    its error fell by less than 5 % over `window` steps, or no damping lowers it (`stuck`); and after `steps` steps.

    Examples:
        Two starts that look for the square root of 2, `residual = 2 - x^2`, `J = 2 x`:

        >>> def equations(fit, weight):
        ...     slope = 2 * fit.unknowns
        ...     wish = slope * fit.residual - weight[:, None] * fit.unknowns
        ...     return lambda damping: fit.unknowns + wish / (slope**2 + (damping + weight)[:, None])
        >>> start = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
        >>> least_squares(start, lambda x, which: 2 - x**2, equations).unknowns.flatten()
        tensor([ 1.4142, -1.4142], dtype=torch.float64)

    Args:
        start: b x ..., the first unknowns of each start, in float64.
        residual: Takes unknowns and the numbers of their starts (`Fit.which`), for problems that differ by start.
        equations: Takes a fit and the weight of each start. Returns the function from a damping of each start to
            the unknowns after `(J^T J + (damping + weight) I)^-1 (J^T residual - weight unknowns)`, where J is the
            derivative of what is subtracted in the residual. It is called again only after a start moved. Where no
            step is possible or allowed it returns the old unknowns, or NaN, which are refused.
        steps: Steps of one start, at most.
        tolerance: The error that is low enough.
        damping: The first one; the squared error if that is less, so that a start which is near stays near.
        penalty: Holds far starts that would run off to infinity.
        window: Steps over which the error must fall.

    Source: Marquardt, An algorithm for least-squares estimation of nonlinear parameters (1963).
    """
    fit, ended, solve = _first(start, residual, damping, window), [], None
    while True:
        over = fit.stuck | _arrived(fit, tolerance) | (fit.steps >= steps)
        if bool(over.any()):
            ended.append(_rows(fit, over))
            fit, solve = _rows(fit, ~over), None
        if not len(fit.which):
            break
        weight = torch.where(fit.error > PENALTY_ENDS, penalty * fit.error.square(), 0.0)
        solve = equations(fit, weight) if solve is None else solve
        fit = _tried(fit, solve(fit.damping), residual, weight)
        solve = solve if bool(fit.refused.all()) else None
    together = Fit(*(torch.cat(values) for values in zip(*ended, strict=True)))
    return _rows(together, together.which.argsort())


def _first(start: Tensor, residual: Callable[[Tensor, Tensor], Tensor], damping: float, window: int) -> Fit:
    """Before any step; the trail is filled with where a start begins."""
    which = torch.arange(len(start), device=start.device)
    left = residual(start, which)
    error, no = _norm(left), torch.zeros_like(which, dtype=torch.bool)
    trail = torch.stack([error, _norm(start)], dim=1)[:, None].expand(-1, window + 1, -1)
    dampings = error.square().clamp(LEAST_DAMPING, damping)
    return Fit(start, left, error, dampings, torch.zeros_like(which), no, no, trail, which)


def _tried(fit: Fit, unknowns: Tensor, residual: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> Fit:
    """After one damped step of each start, which it takes or refuses."""
    left = residual(unknowns, fit.which)
    error, size = _norm(left), _norm(unknowns)
    height = fit.error.square() + weight * fit.trail[:, -1, 1].square()
    good = error.square() + weight * size.square() < height
    raised = fit.damping * RAISE
    if not bool(good.any()):
        return fit._replace(damping=raised, refused=~good, stuck=raised > MOST_DAMPING)
    share = error / fit.error
    ease = torch.where(share < 0.1, 100.0, torch.where(share < 0.7, 5.0, 2.0))
    eased = torch.where(fit.refused, fit.damping, fit.damping / ease).clamp_min(LEAST_DAMPING)
    trail = torch.cat([fit.trail[:, 1:], torch.stack([error, size], dim=1)[:, None]], dim=1)
    steps = fit.steps + good
    slow = (steps >= trail.shape[1] - 1) & (error > SLOW * trail[:, 0, 0])
    return Fit(
        _where(good, unknowns, fit.unknowns), _where(good, left, fit.residual), torch.where(good, error, fit.error),
        torch.where(good, eased, raised), steps, ~good, torch.where(good, slow, raised > MOST_DAMPING),
        _where(good, trail, fit.trail), fit.which,
    )  # fmt: skip


def _arrived(fit: Fit, tolerance: float) -> Bool[Tensor, "b"]:
    """Ten times better than asked for, or good enough and no longer gaining."""
    gaining = fit.error < 0.5 * fit.trail[:, -2, 0]
    return (fit.error <= tolerance / 10) | ((fit.error <= tolerance) & ~gaining)


def _norm(values: Tensor) -> Float[Tensor, "b"]:
    return torch.linalg.vector_norm(values.flatten(1), dim=1)


def _where(good: Bool[Tensor, "b"], new: Tensor, old: Tensor) -> Tensor:
    return torch.where(good.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _rows(fit: Fit, rows: Tensor) -> Fit:
    return Fit(*(values[rows] for values in fit))
