"""A rule from examples of its product, by gradients: Adam on batches, then L-BFGS on all examples."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra.bilinear import BilinearAlgorithm, as_table
from nplex.lab.recipes.products import Examples, unknowns
from nplex.nn import LearnedRule

Report = Callable[[int, float], None]
# Weights of the squared parameters, one round of L-BFGS after the other: what no example determines goes to zero,
# and factors do not run off; without a weight at last, so that it leaves no trace in what is determined.
RIDGES = {False: (1e-4, 0.0), True: (1e-2, 1e-3, 1e-4, 0.0)}
# How many times as many steps the last round may take: examples that hardly determine a full table need many.
LAST = {False: 10, True: 3}
BETWEEN_MOMENTS = 10
MOMENTS_OF_ADAM = 20
MEMORY = 100
# A round ends where the loss between two moments falls by less than this share of itself or of the noise, or is 0.
# Full tables have no flat places before the end.
STILL, STILL_IN_NOISE, ZERO = {False: 1e-13, True: 1e-9}, 1e-9, 1e-28


class Moment(NamedTuple):
    """What training came to at a step: the relative loss, and the table in the size of the examples."""

    step: int
    loss: float
    table: Tensor


@dataclass(frozen=True)
class Steps:
    """How long and how fast.

    Attributes:
        epochs: of Adam.
        batch: examples of a step of Adam.
        rate: of Adam at its first step; falls to 0 as a cosine.
        finish: steps of each round of L-BFGS, at most; for the last one three times as many, ten times for a full
            table.
    """

    epochs: int = 10
    batch: int = 50
    rate: float = 0.03
    finish: int = 200

    def adam(self, examples: int) -> int:
        """Steps of Adam in all."""
        return self.epochs * math.ceil(examples / self.batch)


class Learner(nn.Module):
    """A learned rule, which gives a table in the size of the examples.

    Args:
        n: of the examples.
        size: of the rule. If it is smaller than n, three n x size matrices are learned with it: both factors are
            mapped to the smaller algebra and the result back, `table[k, i, j] = sum_pqs component[k, p]
            result[i, q] inputs[j, s] rule[p, q, s]` (a Tucker form).
        rank: of the rule; None for a full table.
    """

    def __init__(self, n: int, size: int, rank: int | None) -> None:
        super().__init__()
        self.rule = LearnedRule(size, rank, dtype=torch.float64)
        self.maps = nn.ParameterList()
        if size < n:
            self.maps.extend(nn.Parameter(nn.init.orthogonal_(torch.empty(n, size).double())) for _ in range(3))

    def forward(self) -> Float[Tensor, "n n n"]:
        """The table."""
        table = as_table(self.rule())
        if not len(self.maps):
            return table
        return torch.einsum("pqs,kp,iq,js->kij", table, *self.maps)

    @property
    def of_products(self) -> bool:
        """Whether the table is a product of parameters: then it is no convex problem."""
        return self.rule.rank is not None or len(self.maps) > 0

    def factors(self) -> BilinearAlgorithm | None:
        """Detached factors of a rule with a rank."""
        rule = self.rule()
        return rule.to(torch.float64, "cpu") if isinstance(rule, BilinearAlgorithm) else None


class LeastSquares(NamedTuple):
    """All examples in a few numbers: `|| features x - results ||^2 = || triangle x - seen ||^2 + rest`.

    Attributes:
        triangle: R of features = Q R.
        seen: `Q^T results`.
        rest: what no table can explain: the squared noise, less what fits.
        scale: the squared norm of the results, which losses are divided by.
    """

    triangle: Tensor
    seen: Tensor
    rest: float
    scale: float

    @classmethod
    def of(cls, examples: Examples) -> "LeastSquares":
        """By one QR decomposition."""
        q, triangle = torch.linalg.qr(examples.features)
        seen = q.mT @ examples.results
        rest = float((examples.results - q @ seen).square().sum())
        return cls(triangle, seen, rest, float(examples.results.square().sum()))

    def excess(self, table: Float[Tensor, "n n n"]) -> Tensor:
        """The loss above the least one that a table can have, as a share of the results."""
        return (self.triangle @ unknowns(table) - self.seen).square().sum() / self.scale


def fit(
    learner: Learner, examples: Examples, whole: LeastSquares, steps: Steps, generator: torch.Generator,
    report: Report,
) -> list[Moment]:  # fmt: skip
    """Trains the learner in place; the moments of its training. `whole` is the examples' own."""
    trail: list[Moment] = []

    def note(step: int) -> None:
        table = learner().detach().clone()
        trail.append(Moment(step, float(whole.excess(table)) + whole.rest / whole.scale, table))
        report(step, trail[-1].loss)

    note(0)
    _adam(learner, examples, steps, generator, note)
    for ridge in RIDGES[learner.of_products]:
        most = steps.finish * (1 if ridge else LAST[learner.of_products])
        _lbfgs(learner, whole, ridge, most, trail, note)
    return trail


def _adam(
    learner: Learner, examples: Examples, steps: Steps, generator: torch.Generator, note: Callable[[int], None]
) -> None:
    """Passes over shuffled batches."""
    count, total = len(examples.features), steps.adam(len(examples.features))
    optimizer = torch.optim.Adam(learner.parameters(), lr=steps.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(total, 1))
    scale, done = examples.results.square().mean(), 0
    for _ in range(steps.epochs):
        for rows in torch.randperm(count, generator=generator).split(steps.batch):
            optimizer.zero_grad()
            wrong = examples.features[rows] @ unknowns(learner()) - examples.results[rows]
            (wrong.square().mean() / scale).backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done % max(1, total // MOMENTS_OF_ADAM) == 0:
                note(done)


def _lbfgs(
    learner: Learner, whole: LeastSquares, ridge: float, most: int, trail: list[Moment], note: Callable[[int], None]
) -> None:
    """`excess + ridge * mean squared parameter`, until it stands still or the steps are used up."""
    parameters = list(learner.parameters())
    weight = ridge / sum(parameter.numel() for parameter in parameters)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=BETWEEN_MOMENTS, max_eval=10 * BETWEEN_MOMENTS, history_size=MEMORY,
        line_search_fn="strong_wolfe", tolerance_grad=1e-16, tolerance_change=0.0,
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = whole.excess(learner())
        if weight:
            value = value + weight * torch.stack([p.square().sum() for p in parameters]).sum()
        value.backward()
        return value

    first, before = trail[-1].step, math.inf
    still, noise = STILL[learner.of_products], STILL_IN_NOISE * whole.rest / whole.scale
    while (done := optimizer.state[parameters[0]].get("n_iter", 0)) < most:
        optimizer.step(loss)
        taken = optimizer.state[parameters[0]]["n_iter"]
        value = float(loss().detach())
        if taken > done:
            note(first + taken)
        if taken < done + BETWEEN_MOMENTS or before - value <= still * value + noise or value < ZERO:
            break
        before = value
