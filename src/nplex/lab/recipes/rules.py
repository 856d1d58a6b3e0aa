"""Learning a product from examples of it: the table, or with a rank an algorithm that computes it.

In the paper: its artificial data, where the rule becomes the table of Hamilton's product.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.lab.recipes.products import Examples, Product, examples_of, product_named
from nplex.lab.recipes.rule_fit import Learner, LeastSquares, Steps, fit
from nplex.lab.recipes.rule_learned import Learned, Training, judged
from nplex.nn.rule import check_positive

LARGEST = 32
# Numbers of all examples together, 8 bytes each; several copies are held.
MOST_NUMBERS = 10**8
# The largest number of a table is within these; training's steps are made for such.
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-6, 1e6
# Starts where the rule is too small: no start fails there, but some end in worse places than others.
STARTS_OF_SMALLER = 5
# A start with a rank has arrived where its loss is above the least one by a rounding error, or by what noise
# explains: three times the excess that the true table may be expected to have.
ROUNDING, NOISE = 1e-14, 3.0


@dataclass(frozen=True)
class RuleLearning:
    """A product, how many examples of it, and the rule that is to learn it.

    Attributes:
        product: a name for `product_named`: quaternion, clifford(3,0), rotation, random(4), table.json, ...
        n: of the learned rule; None for the product's own. A smaller one is learned with maps to it and back; with a
            larger one all examples are padded with zeros.
        rank: products of the learned algorithm; None for a full table.
        examples: how many.
        noise: on the results, as a share of their root mean square.
        block: side of a layer's square blocks; 1 for plain numbers.
        steps: of training.
        starts: random starts, at most, where one may fail: with a rank or a smaller n.
    """

    product: str
    n: int | None = None
    rank: int | None = None
    examples: int = 1000
    noise: float = 0.0
    block: int = 1
    steps: Steps = field(default_factory=Steps)
    starts: int = 20


def _silent(start: int, step: int, loss: float) -> None:
    """Reports nothing."""


def checked(recipe: RuleLearning) -> Product:
    """The product of a recipe that can be run.

    Raises:
        ValueError: a number is out of its range, or two do not go together.
        FileNotFoundError: the product is a file that does not exist.
    """
    for name in ("examples", "block", "starts"):
        check_positive(name, getattr(recipe, name))
    if not 0 <= recipe.noise <= 10:
        raise ValueError(f"noise must be a share of the results from 0 to 10, as .01; got {recipe.noise:g}")
    product = product_named(recipe.product)
    n = product.algebra.n
    if n > LARGEST or (recipe.n or 1) > LARGEST:
        raise ValueError(f"rules are learned up to n = {LARGEST}, got {max(n, recipe.n or 1)}")
    largest = float(product.algebra.table.abs().max())
    if largest == 0:
        raise ValueError(f"{product.algebra.name} multiplies everything to zero; there is nothing to learn")
    if not SMALLEST_NUMBER <= largest <= LARGEST_NUMBER:
        raise ValueError(
            f"{product.algebra.name}: the largest number of a table must be from {SMALLEST_NUMBER:g} to "
            f"{LARGEST_NUMBER:g}, got {largest:g}; multiply the table by a number that brings it there"
        )
    if recipe.n is not None:
        check_positive("n", recipe.n)
    _check_memory(recipe, max(n, recipe.n or 1))
    if recipe.rank is not None:
        check_positive("rank", recipe.rank)
        if recipe.n not in (None, n):
            raise ValueError(f"a rank needs the product's own n = {n}, got n = {recipe.n}; leave out one of the two")
        if recipe.rank > n * n:
            raise ValueError(
                f"rank must be at most n^2 = {n * n}, with which every table can be had; got {recipe.rank}"
            )
    if recipe.block > 1 and product.draw is not None:
        raise ValueError(f"{recipe.product} is drawn as plain numbers; blocks are for the algebras")
    return product


def learn(recipe: RuleLearning, seed: int = 0, report: Callable[[int, int, float], None] = _silent) -> Learned:
    """Draws examples of the product and learns a rule from them, by gradients from random first values.

    The same seed gives the same result; torch's own random state is not touched. `report` is called with the number
    of the start (from 0), the step in it and the loss.

    Raises:
        ValueError: as `checked` says.
        FileNotFoundError: as `checked` says.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), for what is learned; not for how.
    """
    product = checked(recipe)
    began = time.perf_counter()
    generator = torch.Generator("cpu").manual_seed(seed)
    examples = examples_of(product, recipe.examples, recipe.block, recipe.noise, generator)
    true = product.algebra.table
    if recipe.n is not None and recipe.n > product.algebra.n:
        examples, true = _padded(examples, true, recipe.n)
    whole, tried = LeastSquares.of(examples), []
    goal = _goal(examples, whole)
    for start in range(_starts(recipe, product)):
        learner = _start(recipe, true.shape[0], seed * 1000 + start)
        trail = fit(learner, examples, whole, recipe.steps, generator, lambda *at, start=start: report(start, *at))
        tried.append((trail, learner))
        if recipe.rank is not None and float(whole.excess(trail[-1].table)) <= goal:
            break
    trail, learner = min(tried, key=lambda each: each[0][-1].loss)
    took = time.perf_counter() - began
    return judged(product, seed, Training(whole, true, learner, tuple(trail), goal, len(tried), took))


def _check_memory(recipe: RuleLearning, n: int) -> None:
    """Refuses more examples than fit into memory."""
    numbers = recipe.examples * recipe.block * n * (n + recipe.block)
    if numbers > MOST_NUMBERS:
        raise ValueError(
            f"{recipe.examples:,} examples with n = {n} and blocks of {recipe.block} are {numbers:,} numbers, more "
            f"than {MOST_NUMBERS:,}; take fewer examples"
        )


def _start(recipe: RuleLearning, n: int, seed: int) -> Learner:
    """A learner with first values of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Learner(n, recipe.n or n, recipe.rank)


def _starts(recipe: RuleLearning, product: Product) -> int:
    """How many random starts are made at most."""
    if recipe.rank is not None:
        return recipe.starts
    return min(recipe.starts, STARTS_OF_SMALLER) if (recipe.n or LARGEST) < product.algebra.n else 1


def _goal(examples: Examples, whole: LeastSquares) -> float:
    """The excess that the true table may be expected to have, with a margin."""
    count, features = examples.features.shape
    noise = whole.rest / whole.scale / max(count - features, 1)
    return ROUNDING + NOISE * noise * features


def _padded(examples: Examples, table: Float[Tensor, "m m m"], n: int) -> tuple[Examples, Float[Tensor, "n n n"]]:
    """Factors, results and table with zeros behind them."""
    m, rows = table.shape[0], len(examples.features)
    larger, features = table.new_zeros(n, n, n), table.new_zeros(rows, n, n)
    larger[:m, :m, :m] = table
    features[:, :m, :m] = examples.features.reshape(rows, m, m)
    results = torch.nn.functional.pad(examples.results, (0, n - m))
    return Examples(features.reshape(rows, n * n), results), larger
