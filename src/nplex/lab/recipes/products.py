"""Known products, and examples of them: two factors are drawn, the product tells the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra import Algebra, matrices, named, quaternion
from nplex.lab.checkpoint import read_tensors
from nplex.stored_rules import LEARNED, learning_ends, table_of_json

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
FILES = (".json", ".safetensors")


@dataclass(frozen=True)
class Product:
    """A product that is to be learned.

    Attributes:
        algebra: the true table.
        said: what is multiplied, in words.
        draw: so many pairs of factors, each with n numbers; None for normal numbers.
    """

    algebra: Algebra
    said: str = "normal numbers"
    draw: Draw | None = None


class Examples(NamedTuple):
    """Examples of a product as a linear regression: `results ~ features @ unknowns`, `unknowns[(k, j), i]`.

    Attributes:
        features: `[m, (k, j)]`, the products of the numbers of both factors.
        results: `[m, i]`, with noise.
    """

    features: Tensor
    results: Tensor


def product_named(text: str) -> Product:
    """The product of this name: an algebra of `nplex.algebra.named`, or one of those below, or a table in a file.

    - `rotation`: a unit quaternion q turns a vector p by two Hamilton products, `q p` and `(q p) conj(q)`; half of
      the examples are of the first kind, half of the second. n = 4.
    - `rotation-pure`: the Hamilton product of two pure quaternions, whole numbers from -10 to 9. n = 4, and 28 of
      the 64 entries are never used.
    - `rotation-axis`: a rotation about the axis (1, 2, 2) / 3 by an angle, given as (cos, sin, 1). n = 3.
    - `rotation-real`: the 3 x 3 matrix of a unit quaternion times three vectors. n = 9.
    - `random(n)`: a table of normal numbers, for each n the same one.
    - a .json file with n x n x n nested lists, alone or under "table"; a rule.safetensors of `nplex rule learn`.

    Raises:
        ValueError: there is none of this name, or the file holds no table.
        FileNotFoundError: there is no such file.
    """
    if text in ROTATIONS:
        return ROTATIONS[text]()
    if text.endswith(FILES) or "/" in text:
        return Product(Algebra.from_table(read_table(Path(text)), Path(text).name))
    family, bracket, rest = text.partition("(")
    size = rest.removesuffix(")")
    if family == "random" and bracket and rest.endswith(")") and size.isascii() and size.isdecimal():
        return Product(_random(int(size)))
    try:
        return Product(named(text))
    except ValueError as error:
        others = ", ".join((*ROTATIONS, "random(n)"))
        raise ValueError(
            f"{error}, {others}, or a table in a .json file" if "there are" in str(error) else error
        ) from None


def read_table(path: Path) -> Float[Tensor, "n n n"]:
    """The table of a file: JSON, or the last one of a rule.safetensors.

    Raises:
        ValueError: the file is of another kind, is damaged, or its table is no cube of finite numbers.
        FileNotFoundError: there is no such file.
    """
    if path.suffix not in FILES:
        raise ValueError(f"{path} must be a table in a file that ends in {' or '.join(FILES)}")
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; a product is named as quaternion, or by a file that exists"
        )
    return _last_table(path) if path.suffix == ".safetensors" else table_of_json(path)


def examples_of(product: Product, count: int, block: int, noise: float, generator: torch.Generator) -> Examples:
    """Drawn factors and their products, as a regression.

    With blocks the factors are a layer's: components n x b x b and inputs n x b, so an example gives b equations.
    The noise is normal, `noise` times the root mean square of the results.
    """
    n = product.algebra.n
    if product.draw is None:
        left = torch.randn(count, n, block, block, generator=generator, dtype=torch.float64, device="cpu")
        right = torch.randn(count, n, block, generator=generator, dtype=torch.float64, device="cpu")
        features = torch.einsum("mkab,mjb->makj", left, right).reshape(count * block, n * n)
    else:
        x, y = product.draw(count, generator)
        features = (x[:, :, None] * y[:, None, :]).reshape(count, n * n)
    results = features @ unknowns(product.algebra.table)
    errors = torch.randn(results.shape, generator=generator, dtype=torch.float64, device="cpu")
    return Examples(features, results + noise * results.square().mean().sqrt() * errors)


def unknowns(table: Float[Tensor, "n n n"]) -> Float[Tensor, "n*n n"]:
    """`[(k, j), i] = table[k, i, j]`."""
    return table.mT.reshape(-1, table.shape[0])


def _last_table(path: Path) -> Float[Tensor, "n n n"]:
    """The table after the last step of the first seed in a rule.safetensors."""
    foreign = f"{path} is damaged, or was not written by nplex rule learn --out; name such a file, or a .json file"
    try:
        tensors, header = read_tensors(path)
        ends = list(learning_ends(tensors).items())
    except ValueError:
        raise ValueError(foreign) from None
    if header.get("holds") != LEARNED or not ends:
        raise ValueError(foreign)
    seed, comma, _ = ends[0][0].partition(",")
    last = [table for name, table in ends if name.startswith(seed + comma)][-1]
    try:
        return Algebra.from_table(last.double()).table
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _random(n: int) -> Algebra:
    if not 1 <= n <= 16:
        raise ValueError(f"random(n) needs a whole number from 1 to 16, got random({n})")
    generator = torch.Generator("cpu").manual_seed(n)
    table = torch.randn(n, n, n, generator=generator, dtype=torch.float64, device="cpu")
    return Algebra.from_table(table, f"random({n})")


def _unit_quaternions(count: int, generator: torch.Generator) -> Float[Tensor, "count 4"]:
    q = torch.randn(count, 4, generator=generator, dtype=torch.float64, device="cpu")
    return q / q.norm(dim=1, keepdim=True)


def _turned(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(q, p) and (q p, conj(q)), in turns."""
    q = _unit_quaternions(count, generator)
    p = torch.randn(count, 4, generator=generator, dtype=torch.float64, device="cpu")
    p[:, 0] = 0.0
    second = torch.arange(count)[:, None] % 2 == 1
    x = torch.where(second, quaternion.multiply(q, p), q)
    return x, torch.where(second, quaternion.conjugate(q), p)


def _pure(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    both = torch.randint(-10, 10, (2, count, 4), generator=generator, device="cpu").double()
    both[..., 0] = 0.0
    return both[0], both[1]


def _axis() -> Product:
    """`R = cos (I - u u^T) + sin [u] + u u^T`, linear in (cos, sin, 1).

    Source: Rodrigues' formula.
    """
    u = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64, device="cpu") / 3
    eye = torch.eye(3, dtype=torch.float64, device="cpu")
    along, across = torch.outer(u, u), torch.linalg.cross(u.expand(3, 3), eye).mT
    table = torch.stack([eye - along, across, along])

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        angle = 2 * torch.pi * torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
        v = torch.randn(count, 3, generator=generator, dtype=torch.float64, device="cpu")
        return torch.stack([angle.cos(), angle.sin(), torch.ones_like(angle)], 1), v

    algebra = Algebra.from_table(table, "rotation-axis", ["x", "y", "z"])
    return Product(algebra, "(cos, sin, 1) of an angle, and vectors", draw)


def _matrices_of(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rotation matrix of q, `v -> q v conj(q)`, row by row; and three vectors, the columns of a matrix."""
    q = _unit_quaternions(count, generator)
    units = torch.eye(4, dtype=torch.float64, device="cpu")[1:]
    images = [quaternion.multiply(quaternion.multiply(q, u.expand_as(q)), quaternion.conjugate(q)) for u in units]
    turning = torch.stack([image[:, 1:] for image in images], 2)
    vectors = torch.randn(count, 9, generator=generator, dtype=torch.float64, device="cpu")
    return turning.reshape(count, 9), vectors


ROTATIONS: dict[str, Callable[[], Product]] = {
    "rotation": lambda: Product(quaternion, "unit quaternions turning vectors, in two products", _turned),
    "rotation-pure": lambda: Product(quaternion, "pure quaternions of whole numbers", _pure),
    "rotation-axis": _axis,
    "rotation-real": lambda: Product(matrices(3), "matrices of unit quaternions, and three vectors", _matrices_of),
}
