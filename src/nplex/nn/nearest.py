"""Given weights as rule and components: the nearest sum of Kronecker products.

Rearranged so that each pair (i, j) of blocks is a row, a weight is `M[(i, j), (a, b)]` and the layer's is
`M = rule[k, (i, j)]^T components[k, (a, b)]`: a matrix of rank n at most. The nearest one is the truncated singular
value decomposition (Van Loan and Pitsianis, Approximation with Kronecker products, 1993), here from the Gram matrix
`M M^T`, which has n^2 rows however large the weight. Where the rule is fixed or held as factors the components are
the least squares solution, and factors are moved until the error is the least nearby. Where n does not divide a width
some of M is nobody's, and so is the row of an embedding's padding, which is zero whatever the components are: it is
filled in with what the components give there, and the nearest taken again, some times.

Where the inputs are known, nplex.nn.weighted goes on from there to the nearest outputs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import BilinearAlgorithm
from nplex.nn.low_rank import LowRankLinear
from nplex.nn.moments import Moments
from nplex.nn.rule import Rule
from nplex.nn.truncated import truncate_
from nplex.nn.weighted import Target, fit_, store_, table_of

STEPS = 200  # of L-BFGS, for the factors of a rule with a rank
PASSES = 20  # where n does not divide a width
Inputs = Mapping[str, Sequence[Moments]]  # by the name of a weight: of all its parts, or of each


class _Weight(NamedTuple):
    """Components, the weight that they are to give, its layer's number, whether both are input first, padding.

    And the bias beside it, and what is known of its inputs.
    """

    layer: int
    components: nn.Parameter
    dense: Tensor
    transposed: bool
    padding: int | None
    bias: Tensor | None
    inputs: Sequence[Moments]


@torch.no_grad()
def nearest_(
    layers: Sequence[tuple[nn.Module, nn.Module]], keep: Collection[Rule] = (), inputs: Sequence[Inputs] = ()
) -> list[float]:
    """Fills layers with the numbers nearest to those of their torch twins.

    Nearest are the weights, with the old biases; or, of layers whose inputs are known, the outputs, with biases that
    take up the mean error. Rules are chosen with the components, one that several of the layers share for all of
    them; fixed and frozen ones stay as they are. So does the rank of two factors, LowRankLinear of n = 1.

    Args:
        layers: each one of nplex.nn, made by `like(dense, rule=...)` and changed here, with that torch layer.
        keep: rules that stay too, as ones that other layers use.
        inputs: what is known of each layer's inputs; nothing, or of each of its weights.

    Returns:
        the error `|| W - W_dense || / || W_dense ||` of each layer, over all its weights; or of its outputs,
        `|| (W - W_dense) C^(1/2) || / || W_dense C^(1/2) ||` with C the second moment of the inputs, centred where
        there is a bias.
    """
    inputs = inputs or [{}] * len(layers)
    groups: dict[Rule, list[_Weight]] = {}
    missed = [(0.0, 0.0)] * len(layers)
    for index, ((layer, dense), known) in enumerate(zip(layers, inputs, strict=True)):
        if isinstance(layer, LowRankLinear) and isinstance(dense, nn.Linear):
            missed[index] = truncate_(layer, dense, *known.get("weight", ()))
            continue
        _copy_rest(layer, dense)
        for name, ours, theirs in _pairs(layer, dense):
            groups.setdefault(ours.rule, []).extend(_weights(index, ours, theirs, known, name))
    for rule, weights in groups.items():
        chosen = rule not in keep and any(p.requires_grad for p in rule.parameters())
        for layer, wrong, size in _fill_all(rule, weights, chosen=chosen):
            missed[layer] = missed[layer][0] + wrong, missed[layer][1] + size
    return [(wrong / size) ** 0.5 if size else 0.0 for wrong, size in missed]


def _fill_all(rule: Rule, weights: list[_Weight], *, chosen: bool) -> Iterator[tuple[int, float, float]]:
    """Fills all weights under one rule, chosen by those with known inputs; layer, error and size, both squared."""
    targets = [target for weight in weights for target in _targets(weight)]
    others = [weight for weight in weights if not weight.inputs]
    if targets:
        if chosen:
            _choose(rule, torch.stack([m @ m.mT for m in (_rows(w.dense, w, rule.n) for w in weights)]).sum(0))
        fit_(rule, targets, chosen=chosen)
        yield from ((target.layer, target.missed, target.energy) for target in targets)
    errors = _fill(rule, others, chosen=chosen and not targets) if others else []
    yield from ((weight.layer, *error) for weight, error in zip(others, errors, strict=True))


def _targets(weight: _Weight) -> Iterator[Target]:
    """The parts of a weight, those of one input together."""
    shape = weight.components.shape
    parts, own = (1, weight.components[:, None]) if len(shape) == 3 else (shape[1], weight.components)
    dense = weight.dense.reshape(parts, weight.dense.shape[0] // parts, -1)
    bias = () if weight.bias is None else weight.bias.reshape(parts, -1)
    moments = [*weight.inputs] * (parts if len(weight.inputs) == 1 else 1)
    for known in dict.fromkeys(moments):
        mine = [part for part in range(parts) if moments[part] is known]
        views = [own.detach()[:, part].view(*own[:, part].shape[:2], -1) for part in mine]
        yield Target(weight.layer, views, [dense[p] for p in mine], [bias[p] for p in mine if len(bias)], known)


def _fill(rule: Rule, weights: list[_Weight], *, chosen: bool) -> list[tuple[float, float]]:
    """Fills the components of all weights under one rule; gives what each misses, and its size, both squared."""
    rows, real = [_rows(w.dense, w, rule.n) for w in weights], [_is_real(w, rule.n) for w in weights]
    target = found = components = rows
    for _ in range(1 if all(bool(mask.all()) for mask in real) else PASSES):
        if chosen:
            _choose(rule, torch.stack([m @ m.mT for m in target]).sum(0))
        table = table_of(rule).flatten(1)
        solve = torch.linalg.pinv(table.mT)
        components = [solve @ m for m in target]
        found = [table.mT @ values for values in components]
        target = [torch.where(mask, m, y) for mask, m, y in zip(real, rows, found, strict=True)]
    for weight, values in zip(weights, components, strict=True):
        weight.components.copy_(values.reshape(weight.components.shape))
    missed = [float((y * mask - m).square().sum()) for y, m, mask in zip(found, rows, real, strict=True)]
    return [(wrong, float(m.square().sum())) for wrong, m in zip(missed, rows, strict=True)]


def _pairs(layer: nn.Module, dense: nn.Module) -> Iterator[tuple[str, Any, nn.Module]]:
    """The parts of the layer that hold components, each with the part of the same name of torch's layer."""
    for name, module in layer.named_modules():
        if any("components" in key for key in module._parameters):
            yield name, module, dense.get_submodule(name)


def _weights(layer: int, ours: nn.Module, theirs: nn.Module, inputs: Inputs, name: str) -> Iterator[_Weight]:
    """Every components parameter with the weight of torch's name for it."""
    transposed = isinstance(theirs, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
    for key, parameter in ours._parameters.items():
        if parameter is not None and "components" in key:
            weight = key.replace("components", "weight")
            dense, bias = getattr(theirs, weight).detach(), ours._parameters.get(key.replace("components", "bias"))
            known = inputs.get(f"{name}.{weight}".removeprefix("."), ())
            padding = getattr(theirs, "padding_idx", None)
            yield _Weight(
                layer, parameter, dense, transposed, padding, None if bias is None else bias.detach(), known
            )


def _rows(dense: Tensor, weight: _Weight, n: int) -> Float[Tensor, "pairs numbers"]:
    """`M[(i, j), (part, a, b, ...)]` of a weight, with zeros where n does not divide the widths."""
    shape = weight.components.shape[1:]
    parts, a, b, *kernel = shape if len(shape) > 2 else (1, *shape)
    dense = dense.double().cpu()
    dense = dense.reshape(parts, dense.shape[0] // parts, dense.shape[1], *kernel)
    padded = dense.new_zeros(parts, n * a, n * b, *kernel)
    padded[:, : dense.shape[1], : dense.shape[2]] = dense
    split = padded.reshape(parts, n, a, n, b, -1)
    first, second = (3, 1) if weight.transposed else (1, 3)
    return split.permute(first, second, 0, 2, 4, 5).reshape(n * n, -1)


def _is_real(weight: _Weight, n: int) -> Tensor:
    """Where the rows hold numbers that the components give to the weight."""
    ones = torch.ones_like(weight.dense)
    if weight.padding is not None:
        ones[weight.padding] = 0
    return _rows(ones, weight, n).bool()


def _choose(rule: Rule, gram: Float[Tensor, "pairs pairs"]) -> None:
    """The best table for the weights of this Gram matrix; for factors, the best nearby."""
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rule.n :].flip(1)
    if rule.rank is None:
        store_(rule, [vectors.mT.reshape(rule.n, rule.n, rule.n)])
        return
    factors = [
        rule.get_parameter(f).detach().double().cpu().clone().requires_grad_() for f in BilinearAlgorithm._fields
    ]
    optimizer = torch.optim.LBFGS(factors, max_iter=STEPS, line_search_fn="strong_wolfe")
    unit = gram / gram.trace().clamp_min(1e-300)

    def loss() -> Tensor:
        optimizer.zero_grad()
        basis = torch.linalg.qr(BilinearAlgorithm(*factors).table().flatten(1).mT).Q
        left = 1 - (basis.mT @ unit @ basis).trace()
        left.backward()
        return left

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore - torch says float, its own examples give a tensor
    store_(rule, [factor.detach() for factor in factors])


def _copy_rest(layer: nn.Module, dense: nn.Module) -> None:
    """Biases and whatever else both call the same."""
    theirs = dict(dense.named_parameters())
    for name, parameter in layer.named_parameters():
        if name in theirs and parameter.shape == theirs[name].shape:
            parameter.copy_(theirs[name])
