"""Learning a product from examples of it: the table by gradients, with a rank also an algorithm that computes it.

In the paper: its artificial data, where the rule becomes the table of Hamilton's product.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from nplex.algebra import ExactAlgorithm, Search, find, round_off
from nplex.lab.products.fit import Learner, Moment, Regression, fit
from nplex.lab.products.known import Product, examples_of, product_named, unknowns

# Limits of n, of the numbers of all examples (8 bytes each, in several copies), and of the largest number of a table.
LARGEST, MOST_NUMBERS, RANGE = 32, 10**8, (1e-6, 1e6)
# Whole numbers, halves, quarters, ...: what the learned table is rounded to, the coarsest that fits the examples.
GRAINS = (1, 2, 4, 8, 16, 32, 64)
# Singular values of the examples below this share of the largest count as zero.
DETERMINED = 1e-9
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


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned from one seed.

    Attributes:
        product: what was to be learned.
        seed: of examples and first values.
        true: the product's table, padded with zeros where the rule is larger.
        size: n of the rule.
        trail: the loss and the table over training.
        determined: how many numbers of the table the examples determine.
        error: `|| table - true || / || true ||` over what the examples determine.
        optimum: the same of the least-squares table.
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
    error: float
    optimum: float
    fits: bool
    search: Search | None = None
    exact: ExactAlgorithm | None = None

    @property
    def table(self) -> Tensor:
        """The learned table."""
        return self.trail[-1].table

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
        square = features.reshape(-1, own, own)
        features, results, true = (
            pad(square, (0, more) * 2).flatten(1),
            pad(results, (0, more)),
            pad(true, (0, more) * 3),
        )
    examples, trails = Regression.of(features, results), []
    for start in range(STARTS if size < own else 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1000 + start)
            learner = Learner(max(own, size), size)
        trails.append(fit(learner, examples, generator))
    trail = min(trails, key=lambda each: each[-1].loss)
    table, used = trail[-1].table, _determined(examples)
    least = torch.linalg.lstsq(examples.triangle, examples.seen, driver="gelsd").solution
    error, optimum = (
        float((used @ (found - unknowns(true))).norm() / (used @ unknowns(true)).norm())
        for found in (unknowns(table), least)
    )
    search, exact = None, None
    if recipe.rank is not None and examples.fits(table):
        search, exact = _algorithm(table, examples, recipe.rank, seed)
    determined = used.shape[0] * true.shape[0]
    return Learned(
        product, seed, true, size, tuple(trail), determined, error, optimum, examples.fits(table), search, exact
    )


def _algorithm(
    table: Float[Tensor, "n n n"], examples: Regression, rank: int, seed: int
) -> tuple[Search, ExactAlgorithm | None]:
    """An algorithm of the table, rounded to whole numbers, halves, ... where such a table fits as well."""
    coarser = ((table * grain).round() / grain for grain in GRAINS)
    rounded = next((each for each in coarser if examples.fits(each) and bool(each.any())), None)
    if rounded is None:
        tolerance = min(max(1e-12, examples.goal**0.5), 0.1)
        return find(table, rank, seed, starts=STARTS_OF_SEARCH, tolerance=tolerance), None
    search = find(rounded, rank, seed, starts=STARTS_OF_SEARCH)
    return search, round_off(search.algorithm, rounded, seed) if search.verdict == "exact" else None


def _determined(examples: Regression) -> Float[Tensor, "d unknowns"]:
    """An orthonormal basis of what the examples say something about."""
    _, values, rows = torch.linalg.svd(examples.triangle, full_matrices=False)
    return rows[values > DETERMINED * values[0]]
