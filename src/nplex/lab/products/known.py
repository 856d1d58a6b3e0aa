"""Known products, and examples of them: two factors are drawn, the product gives the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import Algebra, as_table, matrices, named, quaternion
from nplex.stored_rules import stored_rules

FILES = (".json", ".safetensors")


@dataclass(frozen=True)
class Product:
    """A product that can be learned.

    Attributes:
        algebra: the true table.
        factors: what is multiplied, in words.
        draw: as many pairs of factors as asked for, each with n numbers; None for normal numbers.
    """

    algebra: Algebra
    factors: str = "normal numbers"
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]] | None = None


def product_named(text: str) -> Product:
    """The product of this name: an algebra of `nplex.algebra.named`, or one of those below, or a table in a file.

    - `rotation`: a unit quaternion q rotates a vector p by two Hamilton products, `q p` and `(q p) conj(q)`; half of
      the examples are of the first kind, half of the second. n = 4.
    - `rotation-pure`: the Hamilton product of two pure quaternions, whole numbers from -10 to 9. n = 4, and 28 of
      the 64 entries are never used.
    - `rotation-axis`: a rotation about the axis (1, 2, 2) / 3 by an angle, given as (cos, sin, 1). n = 3.
    - `rotation-real`: a 3 x 3 rotation matrix times three vectors. n = 9.
    - `random(n)`: a table of normal numbers, the same one for each n.
    - a .json or .safetensors file, as `nplex rule show` reads it: its last table.

    Raises:
        ValueError: the name is unknown, or the file holds no table.
        FileNotFoundError: the file does not exist.
    """
    if text in ROTATIONS:
        return ROTATIONS[text]
    if text.endswith(FILES) or "/" in text:
        path = Path(text)
        name, rule = list(stored_rules(path).items())[-1]
        title = path.name if path.suffix == ".json" else f"{path.name}, {name}"
        return Product(Algebra.from_table(as_table(rule), title))
    family, _, size = text.removesuffix(")").partition("(")
    if family == "random" and size.isascii() and size.isdecimal():
        if not 1 <= (n := int(size)) <= 16:
            raise ValueError(f"random(n) needs a whole number from 1 to 16, got random({n})")
        return Product(Algebra.from_table(_normal(torch.Generator("cpu").manual_seed(n), n, n, n), f"random({n})"))
    try:
        return Product(named(text))
    except ValueError as error:
        others = f", {', '.join((*ROTATIONS, 'random(n)'))}, or a table in a .json file"
        raise ValueError(f"{error}{others if 'there are' in str(error) else ''}") from None


def examples_of(product: Product, count: int, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drawn factors and their products as a linear regression, `results[m, i] ~ features[m, (k, j)] @ unknowns`.

    Features are the products of the numbers of both factors. The noise is normal, as a share of the results' root
    mean square.
    """
    x, y = product.draw(count, generator) if product.draw else _normal(generator, 2, count, product.algebra.n)
    results = product.algebra.multiply(x, y)
    errors = _normal(generator, *results.shape)
    return (x[:, :, None] * y[:, None, :]).flatten(1), results + noise * results.square().mean().sqrt() * errors


def unknowns(table: Float[Tensor, "n n n"]) -> Float[Tensor, "n*n n"]:
    """`[(k, j), i] = table[k, i, j]`."""
    return table.mT.reshape(-1, table.shape[0])


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


def _two_steps(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(q, p) and (q p, conj(q)), alternating."""
    q, p = _normal(generator, 2, count, 4)
    q, p[:, 0] = q / q.norm(dim=1, keepdim=True), 0.0
    second = torch.arange(count, device="cpu")[:, None] % 2 == 1
    x = torch.where(second, quaternion.multiply(q, p), q)
    return x, torch.where(second, quaternion.conjugate(q), p)


def _pure(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, y = torch.randint(-10, 10, (2, count, 4), generator=generator, device="cpu").double()
    x[:, 0] = y[:, 0] = 0.0
    return x, y


def _angles(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(cos, sin, 1), and vectors."""
    angle = 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    return torch.stack([angle.cos(), angle.sin(), torch.ones_like(angle)], 1), _normal(generator, count, 3)


def _rotation_matrices(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Orthogonal matrices of determinant 1, row by row, and three vectors, the columns of a matrix."""
    turned = torch.linalg.qr(_normal(generator, count, 3, 3)).Q
    return (turned * torch.linalg.det(turned)[:, None, None]).flatten(1), _normal(generator, count, 9)


# About the axis u = (1, 2, 2) / 3: `cos (v - u (u v)) + sin (u x v) + u (u v)` (Rodrigues), in ninths.
AXIS = [
    [[8, -2, -2], [-2, 5, -4], [-2, -4, 5]], [[0, -6, 6], [6, 0, -3], [-6, 3, 0]], [[1, 2, 2], [2, 4, 4], [2, 4, 4]],
]  # fmt: skip
ROTATIONS = {
    "rotation": Product(quaternion, "unit quaternions rotating vectors, in two products", _two_steps),
    "rotation-pure": Product(quaternion, "pure quaternions of whole numbers", _pure),
    "rotation-axis": Product(
        Algebra.from_table(torch.tensor(AXIS, device="cpu").double() / 9, "rotation-axis", ["x", "y", "z"]),
        "(cos, sin, 1) of an angle, and vectors",
        _angles,
    ),
    "rotation-real": Product(matrices(3), "rotation matrices, and three vectors", _rotation_matrices),
}
