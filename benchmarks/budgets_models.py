"""The models of benchmarks/budgets.py: families, their sizes at a budget, their parameters and FLOPs."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import baselines
import torch
from step_sizes import LENGTH, LINES
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import nplex
from nplex.convert import parse_rule
from nplex.lab.recipes.blocks import Block

LAYERS, HEADS = 2, 4
TOKENS = LINES * LENGTH  # of a step
STEP = 8  # widths are multiples of it: heads, n and the blocks of all families divide them
LARGEST = 1024
SHARE = 4  # low rank and block-diagonal layers have a quarter of a dense layer's parameters, as n = 4
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
    def file(self) -> str:
        """Begins the names of its runs."""
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


class Decoder(nn.Module):
    """The next byte, as step_sizes.Bytes, but all its layers are linear ones, so that any structure can be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(256, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, HEADS, 4 * width, 0.0) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """The mean loss, in nats a byte, of all but the first."""
        x = self.words(text[:, :-1]) + self.places.weight
        for block in self.blocks:
            x = block(x, causal=True)
        return F.cross_entropy(self.head(self.norm(x)).transpose(1, 2), text[:, 1:])


def built(model: Model) -> Decoder:
    """A family at a width, with first values of its own."""
    made_new, family = Decoder(model.width), model.family
    if family.structure:
        for name, layer in [*made_new.blocks.named_modules()]:
            if isinstance(layer, nn.Linear):
                made_new.blocks.set_submodule(name, made(family.structure, layer.in_features, layer.out_features))
    elif family.rule != "dense":
        nplex.convert_(made_new, parse_rule(family.rule), where=nplex.only("blocks.*"))
    return made_new


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


def counted(model: Model) -> Size:
    """Counted on a model without numbers."""
    with torch.device("meta"):
        empty = built(model)
    parameters = {name: p.numel() for name, p in empty.named_parameters()}
    blocks = sum(count for name, count in parameters.items() if name.startswith(BLOCKS))
    flops = matmul_flops(empty, TOKENS) + 12.0 * LAYERS * TOKENS * LENGTH * model.width
    return Size(blocks, sum(parameters.values()), flops)


def matmul_flops(model: nn.Module, tokens: int) -> float:
    """Of the blocks and the output head, forward and backward: 6 a weight and token, or nplex's own count."""
    total = 6.0 * tokens * model.get_parameter("head.weight").numel()
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


def points(budgets: tuple[int, ...], widths: tuple[int, ...]) -> list[Point]:
    """All that is trained: dense, each family at equal parameters and at equal FLOPs, then dense of other widths."""
    found = [Point(Model(DENSE, width), width, "") for width in budgets]
    for base in budgets:
        dense = counted(Model(DENSE, base))
        for family in FAMILIES:
            for equal, measure in MEASURES.items():
                width = fitting(lambda w, f=family, m=measure: m(counted(Model(f, w))), measure(dense))
                if counted(model := Model(family, width)).flops <= DEAREST * dense.flops:
                    found.append(Point(model, base, equal))
    return found + [Point(Model(DENSE, width), width, "") for width in widths if width not in budgets]


MEASURES: dict[str, Callable[[Size], float]] = {"parameters": lambda s: s.blocks, "FLOPs": lambda s: s.flops}


def fitting(measure: Callable[[int], float], wanted: float) -> int:
    """The multiple of STEP whose measure, which grows with the width, is nearest to what is wanted."""
    low, high = 1, LARGEST // STEP
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(middle * STEP) <= wanted else (low, middle)
    return STEP * min((low, high), key=lambda steps: abs(math.log(measure(steps * STEP) / wanted)))


def check_counts(width: int) -> None:
    """Compares the count of layers without a rule with torch's own, on a step of a small model.

    Raises:
        AssertionError: they differ.
    """
    for family in (DENSE, *(f for f in FAMILIES if f.structure)):
        model = built(Model(family, width))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(LINES, LENGTH + 1, dtype=torch.long)).backward()
        products = counter.get_flop_counts()["Global"]
        theirs = sum(count for operator, count in products.items() if "attention" not in str(operator))
        ours = matmul_flops(model, TOKENS)
        assert theirs == ours, f"{family.name}: torch counts {theirs:,} FLOPs, this program {ours:,.0f}"
