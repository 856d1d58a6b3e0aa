"""Learning a product from examples of it: the table by gradients, with a rank also an algorithm that computes it.

In the paper: its artificial data, where the rule becomes the table of Hamilton's product.
"""

import itertools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from nplex.algebra import ExactAlgorithm, Search, as_table, find, round_off
from nplex.lab.products.known import Product, examples_of, product_named, unknowns
from nplex.nn import LearnedRule

# Limits of n, of the numbers of all examples (8 bytes each, in several copies), and of the largest number of a table.
LARGEST, MOST_NUMBERS, RANGE = 32, 10**8, (1e-6, 1e6)
# Weights of the squared parameters, one round of L-BFGS after the other: what no example determines goes to zero;
# the last round is without a weight, so that it leaves no trace in what is determined.
RIDGES = (1e-4, 0.0)
# Steps of a round at most; it ends where the loss falls by less than STILL, with maps STILL_WITH_MAPS.
STEPS, STILL, STILL_WITH_MAPS = 1500, 1e-22, 1e-10
# A table fits the examples where its loss is above the least one by a rounding error, or by what noise explains:
# three times the excess that the true table may be expected to have.
ROUNDING, NOISE = 1e-14, 3.0
# Singular values of the examples below this share of the largest count as zero.
DETERMINED = 1e-9
# Whole numbers, halves, quarters, ...: what the learned table is rounded to, the coarsest that fits the examples.
GRAINS = (1, 2, 4, 8, 16, 32, 64)
# Starts of a rule that is too small: none fails, but some end in worse places than others. Starts of a search.
STARTS, STARTS_OF_SEARCH = 3, 20


@dataclass(frozen=True)
class RuleLearning:
    """A product, how many examples of it, and the rule that is to learn it.

    Attributes:
        product: a name for `product_named`: quaternion, clifford(3,0), rotation, random(4), table.json, ...
        n: of the learned rule; None for the product's own. A smaller one is learned with maps to it and back; with a
            larger one all examples are padded with zeros.
        rank: products of the algorithm that is found for the learned table; None for the table alone.
        examples: how many.
        noise: on the results, as a share of their root mean square.
    """

    product: str
    n: int | None = None
    rank: int | None = None
    examples: int = 1000
    noise: float = 0.0

    def known(self) -> Product:
        """The product, after a check of all numbers.

        Raises:
            ValueError: a number is out of its range, or two do not go together.
            FileNotFoundError: the product is a file that does not exist.
        """
        product = product_named(self.product)
        own, largest = product.algebra.n, float(product.algebra.table.abs().max())
        size = max(own, self.n or own)
        for name, value, most in (
            ("n", self.n, LARGEST), ("the product's n", own, LARGEST), ("rank", self.rank, own**2),
            ("examples", self.examples, MOST_NUMBERS // size**2),
        ):  # fmt: skip
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} must be from 1 to {most:,} here, got {value:,}")
        if not 0 <= self.noise <= 10:
            raise ValueError(f"noise must be a share of the results from 0 to 10, as .01; got {self.noise:g}")
        if not RANGE[0] <= largest <= RANGE[1]:
            limits = "the largest number of a table must be from {:g} to {:g}".format(*RANGE)
            raise ValueError(f"{product.algebra.name}: {limits}, got {largest:g}; scale the table")
        if self.rank is not None and self.n not in (None, own):
            raise ValueError(f"a rank needs the product's own n = {own}, got n = {self.n}; leave out one of the two")
        return product


class Moment(NamedTuple):
    """The table after a step of training, with its squared error and its distance from the true one."""

    step: int
    loss: float
    error: float
    table: Tensor


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned from one seed. Errors are `|| table - true || / || true ||` over what the examples determine.

    Attributes:
        product: what was to be learned.
        seed: of the examples and the first values.
        true: the true table, padded with zeros to the learned size where that is larger.
        size: n of the learned rule.
        trail: moments of training, first to last.
        determined: how many numbers of the table the examples determine.
        optimum: the error of the least-squares table.
        fits: whether the learned table fits the examples as well as the true one may be expected to.
        search: for an algorithm of the learned table; None without a rank, or where no table was learned.
        exact: the algorithm in small numbers, checked in fractions, of the learned table rounded as far as the
            examples allow; None where there is none, or none was found.
    """

    product: Product
    seed: int
    true: Tensor
    size: int
    trail: tuple[Moment, ...]
    determined: int
    optimum: float
    fits: bool
    search: Search | None = None
    exact: ExactAlgorithm | None = None

    @property
    def table(self) -> Tensor:
        """The learned table."""
        return self.trail[-1].table

    @property
    def error(self) -> float:
        """The error of the learned table."""
        return self.trail[-1].error

    @property
    def verdict(self) -> str:
        """One sentence."""
        own = self.product.algebra
        if self.size < own.n:
            return f"n = {self.size} is too small for {own.name}, which has n = {own.n}"
        if not self.fits:
            return "not learned: the least-squares table is still nearer; more examples help"
        if self.search is None:
            return "learned"
        products = f"{self.search.rank} product{'' if self.search.rank == 1 else 's'}"
        if self.search.verdict != "exact":
            return f"no algorithm with {products}, {self.search.verdict}: {self.search.reason}"
        if self.exact is None:
            return f"fits the examples with {products}; no exact algorithm in small numbers was found near it"
        right = self.exact.wrong_entries(own.entries) == 0
        of = "" if right else " of another table that fits the examples as well"
        return f"learned, and exact in small numbers: {products}{of}, checked in fractions"


class _Examples:
    """Examples as a linear regression, solved.

    `|| features x - results ||^2 = || values used (x - least) ||^2 + rest`, in units of the results, where the rows
    of `used` are an orthonormal basis of what the examples determine.
    """

    def __init__(
        self, features: Float[Tensor, "m unknowns"], results: Float[Tensor, "m n"], true: Float[Tensor, "n n n"]
    ) -> None:
        norm = results.norm()
        left, values, rows = torch.linalg.svd(features / norm, full_matrices=False)
        some = values > DETERMINED * values[0]
        self.used, self.values, self.true = rows[some], values[some, None], unknowns(true)
        self.least = self.used.mT @ ((left[:, some].mT @ results) / norm / self.values)
        self.rest = float((features @ self.least - results).square().sum() / norm**2)
        more = max(len(features) - features.shape[1], 1)
        self.goal = ROUNDING + NOISE * features.shape[1] * self.rest / more

    def excess(self, table: Float[Tensor, "n n n"]) -> Tensor:
        """The loss above the least one that a table can have."""
        return (self.values * (self.used @ (unknowns(table) - self.least))).square().sum()

    def error(self, found: Float[Tensor, "unknowns n"]) -> float:
        """The distance from the true table."""
        return float((self.used @ (found - self.true)).norm() / (self.used @ self.true).norm())

    def moment(self, step: int, table: Float[Tensor, "n n n"]) -> Moment:
        """A table with its loss and its error."""
        table = table.detach().clone()
        return Moment(step, float(self.excess(table)) + self.rest, self.error(unknowns(table)), table)


def learn(recipe: RuleLearning, seed: int = 0) -> Learned:
    """Draws examples of the product and learns a rule from them, by gradients from random first values.

    The same seed gives the same result; torch's own random state is not touched.

    Raises:
        ValueError: as `RuleLearning.known` says.
        FileNotFoundError: as `RuleLearning.known` says.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), for what is learned; not for how.
    """
    product = recipe.known()
    generator = torch.Generator("cpu").manual_seed(seed)
    true, own = product.algebra.table, product.algebra.n
    features, results = examples_of(product, recipe.examples, recipe.noise, generator)
    size = recipe.n or own
    if (more := size - own) > 0:
        features = pad(features.reshape(-1, own, own), (0, more) * 2).flatten(1)
        results, true = pad(results, (0, more)), pad(true, (0, more) * 3)
    examples, trails = _Examples(features, results, true), []
    for start in range(STARTS if size < own else 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + start)
            trails.append(_fit(max(own, size), size, examples))
    trail = min(trails, key=lambda each: each[-1].loss)
    table, search, exact = trail[-1].table, None, None
    if (fits := bool(examples.excess(table) <= examples.goal)) and recipe.rank is not None:
        search, exact = _algorithm(table, examples, recipe.rank, seed)
    determined, optimum = len(examples.used) * len(true), examples.error(examples.least)
    return Learned(product, seed, true, size, tuple(trail), determined, optimum, fits, search, exact)


def _fit(n: int, size: int, examples: _Examples) -> list[Moment]:
    """L-BFGS on all examples, in rounds; the first and the last table, and each tenth.

    A rule smaller than n is learned with three n x size matrices. They map both factors to its algebra and the result
    back: `table[k, i, j] = sum_pqs component[k, p] result[i, q] inputs[j, s] rule[p, q, s]` (a Tucker form).
    """
    rule = LearnedRule(size, dtype=torch.float64)
    maps = [nn.init.orthogonal_(torch.empty(n, size, dtype=torch.float64)) for _ in range(3 if size < n else 0)]
    parameters = [*rule.parameters(), *(each.requires_grad_() for each in maps)]
    trail: list[Moment] = []
    steps = itertools.count()

    def loss(ridge: float, *, keep: bool = False) -> Tensor:
        table = as_table(rule())
        table = torch.einsum("pqs,kp,iq,js->kij", table, *maps) if maps else table
        if (step := next(steps)) % 10 == 0 or keep:
            trail.append(examples.moment(step, table))
        for parameter in parameters:
            parameter.grad = None
        value = examples.excess(table) + ridge * torch.cat([each.flatten() for each in parameters]).square().mean()
        value.backward()
        return value

    for ridge in RIDGES:
        torch.optim.LBFGS(
            parameters, max_iter=STEPS, max_eval=2 * STEPS, history_size=100, line_search_fn="strong_wolfe",
            tolerance_grad=0.0, tolerance_change=STILL_WITH_MAPS if maps else STILL,
        ).step(lambda ridge=ridge: loss(ridge))  # fmt: skip
    loss(0.0, keep=True)
    return trail


def _algorithm(
    table: Float[Tensor, "n n n"], examples: _Examples, rank: int, seed: int
) -> tuple[Search, ExactAlgorithm | None]:
    """An algorithm of the table, rounded to whole numbers, halves, ... where such a table fits as well."""
    coarser = ((table * grain).round() / grain for grain in GRAINS)
    rounded = next((each for each in coarser if examples.excess(each) <= examples.goal and bool(each.any())), None)
    if rounded is None:
        tolerance = min(max(1e-12, examples.goal**0.5), 0.1)
        return find(table, rank, seed, starts=STARTS_OF_SEARCH, tolerance=tolerance), None
    search = find(rounded, rank, seed, starts=STARTS_OF_SEARCH)
    return search, round_off(search.algorithm, rounded, seed) if search.verdict == "exact" else None
