"""A table from examples of its product, by gradients: Adam on batches, then L-BFGS on all examples."""

import itertools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import as_table
from nplex.lab.products.known import unknowns
from nplex.nn import LearnedRule

# Passes of Adam, each a moment of training; examples of a step; its first step size, which falls to 0 as a cosine.
ADAM, BATCH, RATE = 10, 50, 0.03
# Weights of the squared parameters, one round of L-BFGS after the other: what no example determines goes to zero;
# the last round is without a weight, so that it leaves no trace in what is determined.
RIDGES = (1e-4, 0.0)
# Steps of a round at most; it ends where the loss falls by less than STILL, with maps STILL_WITH_MAPS.
STEPS, STILL, STILL_WITH_MAPS = 1500, 1e-22, 1e-10
# A table fits the examples where its loss is above the least one by a rounding error, or by what noise explains:
# three times the excess that the true table may be expected to have.
ROUNDING, NOISE = 1e-14, 3.0


class Moment(NamedTuple):
    """The relative loss and the table after a step of training."""

    step: int
    loss: float
    table: Tensor


class Learner(nn.Module):
    """A learned rule that gives a table in the size of the examples.

    Args:
        n: of the examples.
        size: of the rule. If it is smaller than n, three n x size matrices are learned with it: they map both
            factors to the smaller algebra and the result back, `table[k, i, j] = sum_pqs component[k, p]
            result[i, q] inputs[j, s] rule[p, q, s]` (a Tucker form).
    """

    def __init__(self, n: int, size: int) -> None:
        super().__init__()
        self.rule = LearnedRule(size, dtype=torch.float64)
        self.maps = nn.ParameterList()
        if size < n:
            self.maps.extend(nn.Parameter(nn.init.orthogonal_(torch.empty(n, size).double())) for _ in range(3))

    def forward(self) -> Float[Tensor, "n n n"]:
        """The table."""
        table = as_table(self.rule())
        return torch.einsum("pqs,kp,iq,js->kij", table, *self.maps) if len(self.maps) else table


class Regression(NamedTuple):
    """`results ~ features @ unknowns(table)`, all in a few numbers for L-BFGS.

    `|| features x - results ||^2 = || triangle x - seen ||^2 + rest`

    Attributes:
        features: `[m, (k, j)]`.
        results: `[m, i]`.
        triangle: R of features = Q R.
        seen: `Q^T results`.
        rest: what no table can explain, the squared noise less what fits, as a share of the results.
    """

    features: Tensor
    results: Tensor
    triangle: Tensor
    seen: Tensor
    rest: float

    @classmethod
    def of(cls, features: Float[Tensor, "m unknowns"], results: Float[Tensor, "m n"]) -> "Regression":
        """By one QR decomposition, all divided by the norm of the results."""
        norm = results.norm()
        q, triangle = torch.linalg.qr(features / norm)
        seen = q.mT @ results / norm
        rest = (results / norm - q @ seen).square().sum()
        return cls(features, results, triangle, seen, float(rest))

    @property
    def goal(self) -> float:
        """The excess up to which a table fits the examples."""
        count, unknown = self.features.shape
        return ROUNDING + NOISE * unknown * self.rest / max(count - unknown, 1)

    def excess(self, table: Float[Tensor, "n n n"]) -> Tensor:
        """The loss above the least one that a table can have, as a share of the results."""
        return (self.triangle @ unknowns(table) - self.seen).square().sum()

    def fits(self, table: Float[Tensor, "n n n"]) -> bool:
        """Whether the table fits the examples as well as the true one may be expected to."""
        return float(self.excess(table)) <= self.goal

    def moment(self, step: int, learner: Learner) -> Moment:
        """What the learner came to."""
        table = learner().detach().clone()
        return Moment(step, float(self.excess(table)) + self.rest, table)


def fit(learner: Learner, examples: Regression, generator: torch.Generator) -> list[Moment]:
    """Trains the learner in place; the moments of its training."""
    trail = [examples.moment(0, learner)]
    optimizer = torch.optim.Adam(learner.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ADAM)
    scale = examples.results.square().mean()
    for _ in range(ADAM):
        batches = torch.randperm(len(examples.features), generator=generator).split(BATCH)
        for rows in batches:
            optimizer.zero_grad()
            wrong = examples.features[rows] @ unknowns(learner()) - examples.results[rows]
            (wrong.square().mean() / scale).backward()
            optimizer.step()
        schedule.step()
        trail.append(examples.moment(trail[-1].step + len(batches), learner))
    for ridge in RIDGES:
        _lbfgs(learner, examples, ridge, trail)
    return trail


def _lbfgs(learner: Learner, examples: Regression, ridge: float, trail: list[Moment]) -> None:
    """`excess + ridge * mean squared parameter`, until it stands still; adds every tenth value to the trail."""
    parameters = list(learner.parameters())
    weight = ridge / sum(parameter.numel() for parameter in parameters)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=STEPS, max_eval=2 * STEPS, history_size=100, line_search_fn="strong_wolfe",
        tolerance_grad=0.0, tolerance_change=STILL_WITH_MAPS if len(learner.maps) else STILL,
    )  # fmt: skip
    steps = itertools.count(trail[-1].step + 1)

    def loss() -> Tensor:
        if (step := next(steps)) % 10 == 0:
            trail.append(examples.moment(step, learner))
        optimizer.zero_grad()
        value = examples.excess(learner()) + weight * torch.stack([p.square().sum() for p in parameters]).sum()
        value.backward()
        return value

    optimizer.step(loss)
    trail.append(examples.moment(next(steps), learner))
