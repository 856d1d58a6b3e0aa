"""The layers that nplex is compared with: those that anyone can write with torch alone, and other packages'.

Each builder makes a layer of d_in x d_out with the parameters of an nplex layer of the same n. Those that compute the
same mathematics get the same numbers as an nplex layer, their twin, so that outputs can be compared. Other packages
are only called; they are imported when their layer is built, and may be missing.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nplex
from nplex.algebra import Algebra, quaternion
from nplex.convert import parse_rule


@dataclass
class Layer:
    """Something to be timed.

    Attributes:
        module: owns the parameters.
        run: what is timed.
        twin: computes the same function, where another layer does.
    """

    module: nn.Module
    run: Callable[[Tensor], Tensor]
    twin: Callable[[Tensor], Tensor] | None = None


def hypercomplex(d_in: int, d_out: int, rule: str) -> Layer:
    """nplex.nn.Linear as it comes; its twin is torch's product with the weight that it says it has."""
    module = nplex.nn.Linear(d_in, d_out, rule=parse_rule(rule))
    return Layer(module, module, lambda x: F.linear(x, module.weight, module.bias))


def dense(d_in: int, d_out: int) -> Layer:
    """torch.nn.Linear."""
    module = nn.Linear(d_in, d_out)
    return Layer(module, module)


def sum_of_kron(d_in: int, d_out: int, n: int) -> Layer:
    """The paper's formula, as its implementations write it."""
    twin = nplex.nn.Linear(d_in, d_out, rule=n)
    module = SumOfKron(twin.rule.get_parameter("table"), twin.components, twin.bias)
    return Layer(module, module, twin)


def quaternion_blocks(d_in: int, d_out: int) -> Layer:
    """The quaternion layer as every package writes it."""
    twin = nplex.nn.Linear(d_in, d_out, rule=quaternion)
    module = QuaternionBlocks(twin.components, twin.bias)
    return Layer(module, module, twin)


def low_rank(d_in: int, d_out: int, n: int) -> Layer:
    """Two dense layers with a narrow middle."""
    rank = round(d_in * d_out / n / (d_in + d_out))
    module = nn.Sequential(nn.Linear(d_in, rank, bias=False), nn.Linear(rank, d_out))
    return Layer(module, module)


def monarch(d_in: int, d_out: int, n: int) -> Layer:
    """Two block-diagonal matrices of 2 n blocks, and a permutation between them."""
    blocks = 2 * n
    width = d_in * d_out / n / (d_in + d_out)  # of the middle, a block; a multiple of 8 suits the processor
    module = Monarch(d_in, d_out, blocks, 8 * round(width / 8))
    return Layer(module, module)


def hyperdense(d_in: int, d_out: int, algebra: str) -> Layer:
    """HypercomplexKeras: the input stands on the left of the product, so the twin has the opposite algebra."""
    constants = getattr(peer("HypercomplexKeras.Algebra"), algebra)
    n, table = constants.getDim(), torch.as_tensor(constants.getA())
    twin = nplex.nn.Linear(d_in, d_out, rule=Algebra.from_table(table.permute(1, 2, 0)))
    layer = peer("HypercomplexKeras.HyperdenseTorch").HyperDenseTorch(d_out // n, (d_in,), algebra=constants)
    put(layer.kernel, twin.components.mT)
    put(layer.bias, twin.bias)
    return Layer(layer, layer, twin)


def tensorly(d_in: int, d_out: int, n: int, kind: str, way: str) -> Layer:
    """tensorly-torch: a BlockTT of two cores at rank n is the sum of n Kronecker products; others fill 1/n."""
    package = peer("tltorch")
    peer("opt_einsum")
    peer("tensorly.plugins").use_opt_einsum()  # the order of products is searched once, not at each call
    if kind != "blocktt":
        inputs, outputs = package.utils.get_tensorized_shape(d_in, d_out, order=2, verbose=False)
        layer = package.FactorizedLinear(inputs, outputs, factorization=kind, rank=1 / n, implementation=way)
        return Layer(layer, layer)
    shapes = ((n, d_in // n), (n, d_out // n))
    layer = package.FactorizedLinear(*shapes, factorization="blocktt", rank=(1, n, 1), implementation=way)
    twin = nplex.nn.Linear(d_in, d_out, rule=n)
    first, second = layer.weight.factors
    put(first, twin.rule.get_parameter("table").permute(1, 2, 0)[None])
    put(second, twin.components[..., None])
    put(layer.bias, twin.bias)
    return Layer(layer, layer, twin)


def peft_lokr(d_in: int, d_out: int, part: str) -> Layer:
    """peft's LoKr with a 2 x 2 left factor and a full right one: a quarter of the base's parameters."""
    package, rank = peer("peft"), max(d_in, d_out)
    config = package.LoKrConfig(r=rank, alpha=rank, decompose_factor=2, target_modules=["0"], init_weights=False)
    layer: Any = package.inject_adapter_in_model(config, nn.Sequential(nn.Linear(d_in, d_out)))[0]
    twin = one_kron(layer.lokr_w1["default"], layer.lokr_w2["default"])
    if part == "delta":
        return Layer(layer, lambda x: F.linear(x, layer.get_delta_weight("default")), twin)
    return Layer(layer, layer, lambda x: layer.base_layer(x) + twin(x))


def lycoris_lokr(d_in: int, d_out: int, part: str) -> Layer:
    """lycoris's LoKr of the same shapes; bypass never builds the Kronecker product, rebuild (its default) does."""
    base = nn.Linear(d_in, d_out).requires_grad_(False)
    lokr = peer("lycoris").LokrModule
    layer = lokr("lokr", base, lora_dim=1, alpha=1, factor=2, full_matrix=True, bypass_mode="rebuild" not in part)
    nn.init.normal_(layer.lokr_w2, std=d_in**-0.5)
    twin = one_kron(layer.lokr_w1, layer.lokr_w2)
    if part == "delta":
        return Layer(layer, layer.bypass_forward_diff, twin)
    return Layer(layer, layer, lambda x: base(x) + twin(x))


def one_kron(left: Tensor, right: Tensor) -> nplex.nn.Linear:
    """The nplex layer with n = 2, one component zero and no bias, whose W is kron(left, right)."""
    twin = nplex.nn.Linear(2 * right.shape[1], 2 * right.shape[0], bias=False, rule=2)
    put(twin.rule.get_parameter("table"), torch.stack([left, left]))
    put(twin.components, torch.stack([right, torch.zeros_like(right)]))
    return twin


def peer(name: str) -> Any:
    """A package that may be missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'nplex[peers]'") from error


@torch.no_grad()
def put(into: Tensor, values: Tensor) -> None:
    """Copies numbers, between equal shapes only."""
    assert into.shape == values.shape, f"{tuple(into.shape)} is not {tuple(values.shape)}"
    into.copy_(values)


class SumOfKron(nn.Module):
    """`W = sum_k kron(rule[k], components[k])`, then torch's product."""

    def __init__(self, rule: Tensor, components: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.rule, self.components, self.bias = (nn.Parameter(p.detach().clone()) for p in (rule, components, bias))

    def forward(self, x: Tensor) -> Tensor:
        """`y = x W^T + b`."""
        first, *others = (torch.kron(*pair) for pair in zip(self.rule, self.components, strict=True))
        return F.linear(x, sum(others, start=first), self.bias)


class QuaternionBlocks(nn.Module):
    """The Hamilton product `w x` as one matrix of 16 signed blocks, then torch's product."""

    def __init__(self, components: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.r, self.i, self.j, self.k = (nn.Parameter(component.detach().clone()) for component in components)
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """`y = x W^T + b`."""
        r, i, j, k = self.r, self.i, self.j, self.k
        rows = ((r, -i, -j, -k), (i, r, -k, j), (j, k, r, -i), (k, -j, i, r))
        return F.linear(x, torch.cat([torch.cat(row, 1) for row in rows]), self.bias)


class Monarch(nn.Module):
    """`y = B P A x + b`: A and B block-diagonal with q blocks, P deals the middle out to all blocks of B.

    Source: Dao et al., Monarch: Expressive Structured Matrices (2022), section 3.
    """

    def __init__(self, d_in: int, d_out: int, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks, self.width = blocks, width
        self.first = nn.Parameter(torch.randn(blocks, d_in // blocks, width) * (blocks / d_in) ** 0.5)
        self.second = nn.Parameter(torch.randn(blocks, width, d_out // blocks) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(d_out))

    def forward(self, x: Tensor) -> Tensor:
        """Two batched matmuls."""
        middle = torch.bmm(x.view(-1, self.blocks, x.shape[-1] // self.blocks).transpose(0, 1), self.first)
        dealt = middle.permute(1, 2, 0).reshape(-1, self.blocks, self.width).transpose(0, 1)
        return torch.bmm(dealt, self.second).transpose(0, 1).reshape(*x.shape[:-1], -1) + self.bias
