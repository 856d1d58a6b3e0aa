"""Given weights and their inputs as rule and components: the layer with the nearest outputs.

`min || (W - W') C^(1/2) ||` with C the second moment of the inputs, over rule and components in turns. Components
given the rule: for a row a of all blocks, `components[:, a] G = sum_i,j rule[k, i, j] (W C)[(i, a), j]` with
`G[k, l] = sum_i,j,m rule[k, i, j] rule[l, i, m] C[j, m]`, one matrix as wide as the inputs for all rows. The rule
given the components: for each i one system of n^2 numbers, with
`M[(k, j), (l, m)] = < components[k]^T components[l], C[j, m] >`. Neither step can raise the error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import BilinearAlgorithm, as_table
from nplex.nn.moments import Moments
from nplex.nn.rule import Rule

FEWEST, MOST, WORK = 5, 100, 2**15  # solutions for one rule: WORK / width, between these
Table = Float[Tensor, "n n n"]


@dataclass
class Target:
    """Weights of one input, their components, and what is known of the input.

    Attributes:
        layer: the number of their layer.
        components: one for each weight, n x a x (b and kernel): views into the layer's numbers.
        weights: rows x columns each, all alike.
        biases: one for each weight, or none: views too. They take up the mean error, so that C is centred.
        moments: of the input.
    """

    layer: int
    components: list[Tensor]
    weights: list[Tensor]
    biases: list[Tensor]
    moments: Moments

    def prepare(self, n: int) -> None:
        """`C` in blocks, and `W C`."""
        _, a, b = self.components[0].shape
        self.blocks = self.moments.blocks(n, b, centred=bool(self.biases))
        rows, columns = self.weights[0].shape
        w = self.blocks.new_zeros(len(self.weights), n * a, n * b)
        for own, weight in zip(w, self.weights, strict=True):
            own[:rows, :columns] = weight
        w = w.unflatten(2, (n, b))
        product = torch.zeros_like(w)
        for j in range(n):
            for m in range(n):
                product[:, :, m] += w[:, :, j] @ self.blocks[j, m]
        self.product = product.unflatten(1, (n, a))  # part, i, a, j, b
        self.energy = float((w.unflatten(1, (n, a)) * self.product).sum())
        whole, left = divmod(rows, a)
        self.strips = [(slice(0, left), whole + 1)] * (left > 0) + [(slice(left, a), whole)]

    def solve(self, table: Table) -> None:
        """The best components for a rule, and the squared error."""
        table = table.to(self.blocks)
        right = torch.einsum("kij,piajb->pakb", table, self.product)
        self.found = torch.empty_like(right)
        for rows, real in self.strips:
            root = factor_of(_system(table[:, :real], self.blocks))
            half = torch.linalg.solve_triangular(
                root.mT, right[:, rows].flatten(2).flatten(0, 1), upper=True, left=False
            )
            found = torch.linalg.solve_triangular(root, half, upper=False, left=False)
            self.found[:, rows] = found.reshape(right[:, rows].shape)
        gained = torch.linalg.vecdot(self.found.flatten(1), right.flatten(1)).double().sum()
        self.missed = max(self.energy - float(gained), 0.0)

    def add_to(self, normal: Tensor, right: Tensor) -> None:
        """Its share of the systems for the rule: `normal[i, k, j, l, m]` and `right[i, k, j]`."""
        n, share = right.shape[0], 1 / (self.energy or 1.0)
        right += share * torch.einsum("pakb,piajb->ikj", self.found, self.product).to(right)
        for rows, real in self.strips:
            own = self.found[:, rows].flatten(0, 1)  # row, l, c
            for k in range(n):
                pairs = (own[:, k].mT @ own.flatten(1)).unflatten(1, (n, -1)).transpose(0, 1)  # l, b, c
                inner = pairs.flatten(1) @ self.blocks.flatten(2).flatten(0, 1).mT
                normal[:real, k] += share * inner.reshape(n, n, n).transpose(0, 1).to(normal)

    def write(self, table: Table) -> None:
        """Puts the components and biases where they belong."""
        rows, columns = self.weights[0].shape
        for components, found in zip(self.components, self.found.transpose(1, 2), strict=True):
            components.copy_(found)
        for i, bias in enumerate(self.biases):
            made = torch.einsum("kij,kab->iajb", table.to(self.found), self.found[i].transpose(0, 1))
            made = made.flatten(2).flatten(0, 1)[:rows, :columns]
            bias += ((self.weights[i].to(made) - made) @ self.moments.mean.to(made)).to(bias)


@torch.no_grad()
def fit_(rule: Rule, targets: Sequence[Target], *, chosen: bool) -> None:
    """Fills components of one rule, and the rule where it is chosen, from where that stands.

    Of several targets the sum of relative squared errors is the least. With the best components put in it is a
    function of the rule alone, whose slope is that for these components (Golub and Pereyra, The differentiation of
    pseudo-inverses and nonlinear least squares problems whose variables separate, 1973): L-BFGS follows it.

    Args:
        rule: it is changed if chosen.
        targets: their components and biases are changed.
        chosen: whether the rule is.
    """
    for target in targets:
        target.prepare(rule.n)
    if chosen:
        _choose(rule, targets)
    table = table_of(rule)
    for target in targets:
        target.solve(table)
        target.write(table)


def _choose(rule: Rule, targets: Sequence[Target]) -> None:
    """The best rule nearby for these targets; where that is not better, as it was."""
    made = rule()
    names = ("table",) if isinstance(made, Tensor) else BilinearAlgorithm._fields
    numbers = [rule.get_parameter(name).detach().double().cpu().clone().requires_grad_() for name in names]
    width = max(target.blocks.shape[-1] * rule.n for target in targets)
    calls = max(FEWEST, min(MOST, WORK // width))
    optimizer = torch.optim.LBFGS(
        numbers, max_iter=calls, max_eval=calls, tolerance_grad=0, tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    best, found = torch.inf, [number.detach().clone() for number in numbers]

    def loss() -> Tensor:
        nonlocal best, found
        optimizer.zero_grad()
        table = as_table(numbers[0] if isinstance(made, Tensor) else BilinearAlgorithm(*numbers))
        with torch.no_grad():
            missed, slope = _slope(table, targets)
            if missed < best:
                best, found = missed, [number.clone() for number in numbers]
        (table * slope).sum().backward()
        return torch.tensor(missed)

    with torch.enable_grad():
        optimizer.step(loss)  # pyright: ignore - torch says float, its own examples give a tensor
    store_(rule, found)


def _slope(table: Table, targets: Sequence[Target]) -> tuple[float, Table]:
    """The sum of relative squared errors with the best components for a rule, and its derivative by the table."""
    n, missed = len(table), 0.0
    normal, right = table.new_zeros(n, n, n, n, n), table.new_zeros(n, n, n)
    for target in targets:
        target.solve(table)
        target.add_to(normal, right)
        missed += target.missed / (target.energy or 1.0)
    return missed, 2 * (torch.einsum("ikjlm,lim->kij", normal, table) - right.transpose(0, 1))


def _system(table: Float[Tensor, "n real n"], blocks: Float[Tensor, "n n b b"]) -> Float[Tensor, "width width"]:
    """`G[k, l] = sum_i,j,m rule[k, i, j] rule[l, i, m] C[j, m]`."""
    n, b = len(table), blocks.shape[-1]
    mixed = torch.einsum("kij,lim->kljm", table, table)
    out = blocks.new_empty(n, b, n, b)
    for k in range(n):
        out[k] = (mixed[k].flatten(1) @ blocks.flatten(2).flatten(0, 1)).unflatten(1, (b, b)).transpose(0, 1)
    return out.flatten(2).flatten(0, 1)


def factor_of(matrix: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """The Cholesky factor of a second moment, or of a sum of its blocks; what it does not know of is made small.

    Raises:
        ValueError: the matrix is not finite.
    """
    share = 10 * torch.finfo(matrix.dtype).eps
    matrix.diagonal().add_(share * float(matrix.diagonal().mean()) or 1.0)
    for _ in range(8):
        factor, info = torch.linalg.cholesky_ex(matrix)
        if not int(info):
            return factor
        matrix.diagonal().mul_(1 + share)
        share *= 10
    raise ValueError("the second moment of the inputs is not finite")


def store_(rule: Rule, found: Sequence[Tensor]) -> None:
    """Writes a rule in the size it is made with: faces that are orthogonal, or factors of one size."""
    if len(found) == 1:
        faces = torch.linalg.qr(found[0].flatten(1).mT).Q.mT
        rule.get_parameter("table").copy_(rule.initial_norm / rule.n**0.5 * faces.reshape(found[0].shape))
        return
    norms = [factor.norm(dim=0).clamp_min(1e-300) for factor in found]
    each = (norms[0] * norms[1] * norms[2]) ** (1 / 3)
    even = BilinearAlgorithm(*(factor * (each / norm) for factor, norm in zip(found, norms, strict=True)))
    scale = (rule.initial_norm * rule.n**0.5 / even.table().flatten(1).norm(dim=1).sum()) ** (1 / 3)
    for name, factor in even._asdict().items():
        rule.get_parameter(name).copy_(scale * factor)


def table_of(rule: Rule) -> Table:
    """`rule[k, i, j]` in float64."""
    made = rule()
    numbers = made if isinstance(made, Tensor) else BilinearAlgorithm(*(factor.double() for factor in made))
    return as_table(numbers).detach().double().cpu()
