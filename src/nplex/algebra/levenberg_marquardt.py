"""Damped least squares (Levenberg-Marquardt), many starts at once: the one such loop of the project.

The loop knows neither the unknowns nor how a damped step is solved for; both are functions that a caller gives.

Source: Marquardt, An algorithm for least-squares estimation of nonlinear parameters (1963).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_DAMPING, MOST_DAMPING = 1e-17, 1e4
# A refused step raises the damping by this factor.
RAISE = 3.0
# A start ends when its error falls by less than a twentieth within the window.
SLOW = 0.95
# Steps over which the error must fall.
WINDOW = 15
# Below this error nothing is penalised.
PENALTY_ENDS = 1e-2


@dataclass
class Track:
    """How one start went. Plain numbers: for few starts torch would take most of the time with them.

    Attributes:
        trail: `|| residual ||` and `|| unknowns ||` at the start and after each step; refused ones do not count.
        damping: Of the next step.
        refused: Whether the last step tried was refused.
        stuck: Whether it ended because its error stood still or no damping lowered it.
    """

    trail: list[tuple[float, float]]
    damping: float
    refused: bool = False
    stuck: bool = False

    @property
    def error(self) -> float:
        """`|| residual ||` now."""
        return self.trail[-1][0]

    def since(self, window: int) -> tuple[float, float]:
        """The norms so many steps ago, or at the start."""
        return self.trail[max(0, len(self.trail) - 1 - window)]

    def over(self, steps: int, tolerance: float) -> bool:
        """Whether it ends: stuck, after all steps, far below the tolerance, or below it and no longer gaining."""
        arrived = self.error <= tolerance and self.error >= 0.5 * self.since(1)[0]
        return self.stuck or len(self.trail) > steps or self.error <= tolerance / 10 or arrived

    def take(self, weight: float, error: float, size: float, window: int) -> bool:
        """Takes a step to these norms if it lowers `|| residual ||^2 + weight || unknowns ||^2`, and says so.

        If not, it is tried again with three times the damping. A step taken eases the damping: by 2, by 5 if it left
        less than 0.7 of the error, by 100 if less than 0.1, and not at all right after a refusal.
        """
        before, was = self.trail[-1]
        if not error * error + weight * size * size < before * before + weight * was * was:
            self.damping *= RAISE
            self.refused, self.stuck = True, self.damping > MOST_DAMPING
            return False
        if not self.refused:
            ease = 100 if error < 0.1 * before else 5 if error < 0.7 * before else 2
            self.damping = max(self.damping / ease, LEAST_DAMPING)
        self.trail.append((error, size))
        self.refused, self.stuck = False, len(self.trail) > window and error > SLOW * self.since(window)[0]
        return True


@torch.no_grad()
def least_squares(
    start: Tensor,
    residual: Callable[[Tensor, Tensor], Tensor],
    equations: Callable[[Tensor, Tensor, Tensor], Callable[[Tensor], Tensor]],
    *,
    steps: int = 100,
    tolerance: float = 1e-12,
    damping: float = 0.1,
    penalty: float = 0.0,
    window: int = WINDOW,
) -> tuple[Tensor, list[Track]]:
    """Lowers `|| residual(x) ||^2 + weight || x ||^2` from each start x; one start does not affect another.

    `weight` is `penalty || residual ||^2` at the last step, and zero once the error is below 0.01. `Track` says when
    a start ends. Returns the unknowns where each ended, b x ..., and how it went.

    Examples:
        >>> def equations(x, residual, weight):  # of 2 - x^2, J = 2 x
        ...     slope = 2 * x
        ...     wish = slope * residual - weight[:, None] * x
        ...     return lambda damping: x + wish / (slope**2 + (damping + weight)[:, None])
        >>> start = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
        >>> least_squares(start, lambda x, which: 2 - x**2, equations)[0].flatten()
        tensor([ 1.4142, -1.4142], dtype=torch.float64)

    Args:
        start: b x ..., the first unknowns of each start, in float64.
        residual: Takes unknowns and the numbers of their starts, for problems that differ by start.
        equations: Takes unknowns, their residual and the weight of each start. Returns the function from a damping
            of each start to the unknowns after `(J^T J + (damping + weight) I)^-1 (J^T residual - weight unknowns)`,
            where J is the derivative of what is subtracted in the residual. It is called again only after a start
            moved. Where no step is possible or allowed it returns the old unknowns, or NaN, which are refused.
        steps: Steps of one start, at most.
        tolerance: The error that is low enough.
        damping: The first one; the squared error if that is less, so that a start which is near stays near.
        penalty: Holds far starts that would run off to infinity.
        window: Steps over which the error must fall.
    """
    which = torch.arange(len(start), device=start.device)
    unknowns, left, solve = start, residual(start, which), None
    norms, reached = zip(_norms(left), _norms(start), strict=True), start.clone()
    tracks = every = [Track([both], min(damping, max(both[0] * both[0], LEAST_DAMPING))) for both in norms]
    while tracks:
        over = [track.over(steps, tolerance) for track in tracks]
        if any(over):
            gone = torch.tensor(over, device=start.device)
            reached[which[gone]] = unknowns[gone]
            unknowns, left, which, solve = unknowns[~gone], left[~gone], which[~gone], None
            tracks = [track for track, ended in zip(tracks, over, strict=True) if not ended]
            continue
        weights = [penalty * track.error**2 if track.error > PENALTY_ENDS else 0.0 for track in tracks]
        solve = solve or equations(unknowns, left, start.new_tensor(weights))
        tried = solve(start.new_tensor([track.damping for track in tracks]))
        after = residual(tried, which)
        moves = zip(tracks, weights, _norms(after), _norms(tried), strict=True)
        taken = [track.take(weight, error, size, window) for track, weight, error, size in moves]
        if any(taken):
            unknowns, left, solve = _mixed(taken, tried, unknowns), _mixed(taken, after, left), None
    return reached, every


def _mixed(taken: list[bool], new: Tensor, old: Tensor) -> Tensor:
    """The new values of the starts that took their step, the old ones of all others."""
    if all(taken):
        return new
    rows = torch.tensor(taken, device=new.device)
    return torch.where(rows.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _norms(values: Tensor) -> list[float]:
    return torch.linalg.vector_norm(values.flatten(1), dim=1).tolist()
