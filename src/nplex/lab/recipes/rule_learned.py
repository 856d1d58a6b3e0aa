"""What was learned of a product, held against the truth."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.algebra.classes import classes
from nplex.algebra.fractions import ExactAlgorithm
from nplex.algebra.rounding import round_off
from nplex.algebra.search.bound import LowerBound, lower_bound
from nplex.algebra.tucker import smaller_error
from nplex.lab.recipes.products import Product, unknowns
from nplex.lab.recipes.rule_fit import Learner, LeastSquares, Moment

# Whole numbers, halves, quarters, ...: what the learned table is rounded to, the coarsest that fits the examples.
GRAINS = (1, 2, 4, 8, 16, 32, 64)
# Singular values of the examples below this share of the largest count as zero.
DETERMINED = 1e-9


class Training(NamedTuple):
    """What training left.

    Attributes:
        whole: all examples, in a few numbers.
        true: the product's table, padded with zeros where the rule is larger.
        learner: of the start that was kept.
        trail: of that start.
        goal: the excess of the loss that the true table may be expected to have.
        starts: that were made.
        seconds: that they took.
    """

    whole: LeastSquares
    true: Tensor
    learner: Learner
    trail: tuple[Moment, ...]
    goal: float
    starts: int
    seconds: float

    @property
    def arrived(self) -> bool:
        """Whether the loss is as low as the true table's may be."""
        return self.explains(self.trail[-1].table)

    def explains(self, table: Float[Tensor, "n n n"]) -> bool:
        """Whether this table fits the examples as well as the true one may be expected to."""
        return float(self.whole.excess(table)) <= self.goal


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned from one seed.

    Attributes:
        product: what was to be learned.
        seed: of examples and first values.
        true: the product's table, padded with zeros where the rule is larger.
        table: the learned one, as large.
        size: n of the rule.
        error: `|| table - true || / || true ||` over what the examples determine.
        whole_error: the same over all entries.
        determined: how many numbers of the table the examples determine.
        optimum: the error of the least-squares table over what is determined; of the nearest smaller algebra where n
            is too small.
        undetermined: the norm of what was learned where the examples say nothing, as a share of the true table's.
        surplus: the norm of what was learned beyond the product's own n, as a share of the true table's.
        loss: the mean squared error on the examples, as a share of the mean square of the results.
        least_loss: the least one that any table has.
        trail: the loss and the table over training, of the start that was kept.
        starts: that were made.
        seconds: that learning took, all starts together.
        algorithm: the learned factors of a rule with a rank.
        exact: the same in small numbers, checked in fractions, of the learned table rounded as far as the examples
            allow; None where there is none, or none was found.
        verdict: one sentence.
    """

    product: Product
    seed: int
    true: Tensor
    table: Tensor
    size: int
    error: float
    whole_error: float
    determined: int
    optimum: float
    undetermined: float
    surplus: float
    loss: float
    least_loss: float
    trail: tuple[Moment, ...]
    starts: int
    seconds: float
    algorithm: BilinearAlgorithm | None
    exact: ExactAlgorithm | None
    verdict: str

    @property
    def steps(self) -> int:
        """Of the start that was kept."""
        return self.trail[-1].step

    @property
    def too_small(self) -> bool:
        """Whether the rule has a smaller n than the product."""
        return self.size < self.product.algebra.n


def judged(product: Product, seed: int, training: Training) -> Learned:
    """The learned table beside the true one, and a learned algorithm in small numbers."""
    whole, true, learner, trail, _, starts, seconds = training
    table, n = trail[-1].table, product.algebra.n
    used = _determined(whole)
    least = torch.linalg.lstsq(whole.triangle, whole.seen, driver="gelsd").solution
    smaller = len(learner.maps) > 0
    algorithm = learner.factors()
    rounded = None if algorithm is None or not training.arrived else _rounded(table, training)
    exact = None if algorithm is None or rounded is None else round_off(algorithm, rounded, seed)
    return Learned(
        product, seed, true, table, learner.rule.n,
        error=_relative(used @ unknowns(table), used @ unknowns(true)),
        whole_error=float((table - true).norm() / true.norm()),
        determined=used.shape[0] * true.shape[0],
        optimum=smaller_error(true, learner.rule.n) if smaller else _relative(used @ least, used @ unknowns(true)),
        undetermined=float((unknowns(table) - used.mT @ (used @ unknowns(table))).norm() / true.norm()),
        surplus=_surplus(table, n) / float(true.norm()),
        loss=trail[-1].loss,
        least_loss=whole.rest / whole.scale,
        trail=trail, starts=starts, seconds=seconds, algorithm=algorithm, exact=exact,
        verdict=_verdict(product, training, exact, used.shape[0] * true.shape[0]),
    )  # fmt: skip


def _determined(whole: LeastSquares) -> Float[Tensor, "d unknowns"]:
    """An orthonormal basis of what the examples say something about."""
    _, values, rows = torch.linalg.svd(whole.triangle, full_matrices=False)
    return rows[values > DETERMINED * values[0]]


def _relative(found: Tensor, true: Tensor) -> float:
    return float((found - true).norm() / true.norm())


def _rounded(table: Float[Tensor, "n n n"], training: Training) -> Tensor | None:
    """The table in whole numbers, halves, ...: what fits the examples as well, whatever the truth is; None else."""
    tried = ((table * grain).round() / grain for grain in GRAINS)
    return next(filter(training.explains, tried), None)


def _surplus(table: Float[Tensor, "n n n"], own: int) -> float:
    """The norm of what stands beyond the product's own n."""
    rest = table.clone()
    rest[:own, :own, :own] = 0.0
    return float(rest.norm())


def _verdict(product: Product, training: Training, exact: ExactAlgorithm | None, determined: int) -> str:
    """What came out, in a sentence."""
    rule, own = training.learner.rule, product.algebra.n
    if rule.n < own:
        return f"n = {rule.n} is too small for {product.algebra.name}, which has n = {own}"
    if rule.rank is None:
        return (
            "learned"
            if training.arrived
            else "not learned: the least-squares table is still nearer; more examples help"
        )
    products = counted(rule.rank, "product")
    if determined < training.true.numel():
        fits = f"fits the examples with {products}" if training.arrived else f"not learned with {products}"
        return f"{fits}; they determine only {determined} of {training.true.numel()} numbers: more examples help"
    bound = _needed(product)
    if training.arrived and rule.rank < bound.rank:
        return f"{products} fit the examples within their noise, but at least {bound.rank} are needed: {bound.why}"
    if exact is not None:
        true = exact.wrong_entries(training.true.tolist()) == 0
        of = "" if true else " of another table that fits the examples as well"
        return f"learned, and exact in small numbers: {products}{of}, checked in fractions"
    if training.arrived:
        return f"learned with {products}; near it no exact algorithm in small numbers was found"
    proved = "proved impossible," if rule.rank < bound.rank else "proved is only that"
    failed = f"not learned: {training.starts} starts with {products} all fail"
    return f"{failed}; {proved} at least {bound.rank} are needed: {bound.why}"


def _needed(product: Product) -> LowerBound:
    """How many products are needed at least: what can be computed, or the rank where it is known to be more."""
    algebra = product.algebra
    bound = lower_bound(algebra.table / algebra.table.norm(), 1e-9)
    ranks = [each.rank for each in classes(algebra.n) if algebra.name in (each.name, *each.aliases)]
    known = max((rank for rank in ranks if rank is not None), default=0)
    return LowerBound(known, f"that is the rank of {algebra.name}") if known > bound.rank else bound


def counted(number: int, what: str) -> str:
    """`1 product`, `1,000 examples`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
