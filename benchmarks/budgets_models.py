"""The models of benchmarks/budgets.py: families, their sizes at a budget, their parameters and FLOPs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import baselines
import torch
from studies import Short, mixed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import nplex
from nplex.lab.recipes.tasks import recipe_of

LAYERS, HEADS = 2, 4
LINES = 8  # of a batch
STEP = 8  # widths are multiples of it: heads, n and the blocks of all families divide them
LARGEST = 1024
SHARE = 4  # low rank and block-diagonal layers have a quarter of a dense layer's parameters, as n = 4
TESTED = 98_304  # bytes of dev, and of test
BLOCKS = "blocks."


@dataclass(frozen=True)
class Family:
    """One way to build the layers of the blocks.

    Attributes:
        name: in tables.
        rule: as on the command line.
        structure: of layers without a rule: low rank or block-diagonal.
    """

    name: str
    rule: str = "dense"
    structure: str = ""


DENSE = Family("dense")
FAMILIES = (
    Family("n = 4, rank 4", "4:4"),
    Family("n = 8, rank 8", "8:8"),
    Family("low rank", structure="low rank"),
    Family("block-diagonal", structure="block-diagonal"),
    Family("n = 2, rank 2", "2:2"),  # the generic rank too
    Family("n = 4, rank 7", "4:7"),
    Family("n = 8, rank 24", "8:24"),
)
DEAREST = 2.5  # models of equal parameters that take more than so many times the dense one's FLOPs are left out


@dataclass(frozen=True)
class Model:
    """A family at a width."""

    family: Family
    width: int

    @property
    def folder(self) -> str:
        """For its runs."""
        return f"{self.family.structure or self.family.rule}-{self.width}".replace(":", "-").replace(" ", "-")


@dataclass(frozen=True)
class Point:
    """A model that is compared with a dense one.

    Attributes:
        model: which.
        base: the dense model's width.
        equal: in what: parameters or FLOPs; "" for the dense model itself.
    """

    model: Model
    base: int
    equal: str


@dataclass(frozen=True)
class Structured:
    """Stands before the language recipe: layers of another structure, short epochs.

    Attributes:
        structure: of all layers that the recipe would convert; "" leaves them.
        steps: of an epoch.
    """

    structure: str = ""
    steps: int = 0

    def build(self, data: Any) -> nn.Module:
        """The recipe's model, its layers exchanged."""
        model = super().build(data)  # pyright: ignore - the recipe's
        if self.structure:
            chosen = [
                (name, layer) for name, layer in model.named_modules()
                if isinstance(layer, nn.Linear) and self.converted(name, layer)  # pyright: ignore - the recipe's
            ]  # fmt: skip
            for name, layer in chosen:
                model.set_submodule(name, made(self.structure, layer.in_features, layer.out_features))
        return model

    def task(self, data: Any) -> Any:
        """The recipe's task, in short epochs."""
        return Short(super().task(data), self.steps)  # pyright: ignore - the recipe's


@torch.no_grad()
def made(structure: str, d_in: int, d_out: int) -> nn.Module:
    """A layer with first values such that W has the variance of torch's layer, `1 / (3 d_in)`, as all others have."""
    if structure == "low rank":
        layer = baselines.low_rank(d_in, d_out, SHARE).module
        factors, ratio = [part.weight for part in layer.children()], 3.0  # W of two torch layers has a third of it
    else:
        middle = max(1, round(d_in * d_out / SHARE / (d_in + d_out)))  # of a block
        layer = baselines.Monarch(d_in, d_out, 2 * SHARE, middle)
        factors, ratio = [layer.first, layer.second], 1 / 3
    for factor in factors:
        factor.mul_(ratio**0.25)
    return layer


def recipe(model: Model, rate: float, steps: int) -> Any:
    """The language recipe at a width: 2 blocks, feed-forward 4 times the width, no dropout: no byte is read twice."""
    plain = recipe_of("language", model.family.rule)
    size = {"batch_size": LINES, "batch_tokens": 0, "accumulate": 1}
    schedule = replace(plain.schedule, epochs=1, learning_rate=rate, patience=0, keep="last", **size)
    return mixed(
        Structured, plain, width=model.width, feed_forward=4 * model.width, heads=HEADS, layers=LAYERS, dropout=0.0,
        schedule=schedule, structure=model.family.structure, steps=steps,
    )  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What a model has, and what it takes.

    Attributes:
        blocks: parameters of the blocks: layers, their rules, biases, norms.
        parameters: of the whole model.
        flops: of one training step.
    """

    blocks: int
    parameters: int
    flops: float


def counted(model: Model, folder: Path | None) -> Size:
    """Counted on a model without numbers."""
    (tokens, length), data = batch_shape(folder), loaded(folder)
    with torch.device("meta"):
        built = recipe(model, 1e-3, 1).build(data)
    parameters = {name: p.numel() for name, p in built.named_parameters()}
    blocks = sum(count for name, count in parameters.items() if name.startswith(BLOCKS))
    flops = matmul_flops(built, tokens) + attention_flops(model.width, tokens, length)
    return Size(blocks, sum(parameters.values()), flops)


@cache
def loaded(folder: Path | None) -> Any:
    """The data, read once in each process; of dev and test no more than is needed to tell models apart."""
    data = recipe_of("language", "dense").load(folder)
    return replace(data, dev=data.dev[:TESTED], test=data.test[:TESTED])


@cache
def batch_shape(folder: Path | None) -> tuple[int, int]:
    """Bytes that are predicted in a step, and in each of its lines, as the recipe's task makes them."""
    made_by, data = recipe(Model(DENSE, STEP * HEADS), 1e-3, 1), loaded(folder)
    task = made_by.task(data)
    indices = task.batches(torch.Generator().manual_seed(0))[0]
    items = task.loss(made_by.build(data), indices, torch.device("cpu")).items
    return items, items // len(indices)


def matmul_flops(model: nn.Module, tokens: int) -> float:
    """Of the blocks and the output head, forward and backward: 6 a weight and token, or nplex's own count."""
    words = model.get_submodule("words")
    total = 6.0 * tokens * words.get_parameter("weight").numel()  # the head, which may be tied to it
    for name, layer in model.named_modules():
        if not name.startswith(BLOCKS):
            continue
        if isinstance(layer, nplex.nn.Linear):
            total += bilinear_flops(layer, tokens)
        elif isinstance(layer, nn.Linear):
            total += 6 * tokens * layer.weight.numel()
        elif isinstance(layer, baselines.Monarch):
            total += 6 * tokens * (layer.first.numel() + layer.second.numel())
    return total


def bilinear_flops(layer: nplex.nn.Linear, tokens: int) -> float:
    """As nplex.ops.plan_for counts: building blocks, mixing, block products, those made again for the gradients."""
    rule = layer.rule
    sizes = {"tokens": tokens, "n": rule.n, "rank": rule.rank, "training": True}
    plan = nplex.ops.plan_for(layer.in_features, layer.out_features, **sizes)
    return next(cost.flops for cost in plan.costs if cost.method == "bilinear")


def attention_flops(width: int, tokens: int, length: int) -> float:
    """Two products of all places with all places, and their gradients; what a mask hides is counted too."""
    return 12.0 * LAYERS * tokens * length * width


def points(folder: Path | None, budgets: tuple[int, ...], widths: tuple[int, ...]) -> list[Point]:
    """All that is trained: dense models, then for each budget each family at equal parameters and at equal FLOPs."""
    found = [Point(Model(DENSE, width), width, "") for width in sorted(widths, key=lambda w: w not in budgets)]
    for base in budgets:
        dense = counted(Model(DENSE, base), folder)
        for family in FAMILIES:
            for equal, measure in MEASURES.items():
                width = fitting(lambda w, f=family, m=measure: m(counted(Model(f, w), folder)), measure(dense))
                if counted(model := Model(family, width), folder).flops <= DEAREST * dense.flops:
                    found.append(Point(model, base, equal))
    return found


MEASURES: dict[str, Callable[[Size], float]] = {"parameters": lambda s: s.blocks, "FLOPs": lambda s: s.flops}


def fitting(measure: Callable[[int], float], wanted: float) -> int:
    """The multiple of STEP whose measure, which grows with the width, is nearest to what is wanted."""
    low, high = 1, LARGEST // STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle * STEP) <= wanted else (low, middle)
    return STEP * min((low, high), key=lambda steps: abs(math.log(measure(steps * STEP) / wanted)))


def check_counts(folder: Path | None, width: int) -> None:
    """Compares the count of layers without a rule with torch's own, on a step of a small model.

    Raises:
        AssertionError: they differ.
    """
    data = loaded(folder)
    for family in (DENSE, *(f for f in FAMILIES if f.structure)):
        made_by = recipe(Model(family, width), 1e-3, 1)
        task, model = made_by.task(data), made_by.build(data)
        indices = task.batches(torch.Generator().manual_seed(0))[0]
        with FlopCounterMode(display=False) as counter:
            loss = task.loss(model, indices, torch.device("cpu"))
            loss.total.backward()
        products = counter.get_flop_counts()["Global"]
        theirs = sum(count for operator, count in products.items() if "attention" not in str(operator))
        ours = matmul_flops(model, loss.items)
        assert theirs == ours, f"{family.name}: torch counts {theirs:,} FLOPs, this program {ours:,.0f}"
