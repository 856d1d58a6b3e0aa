"""Exact bilinear algorithms that are known, with small numbers."""

import torch
from jaxtyping import Float
from torch import Tensor

from nplex.algebra.bilinear import BilinearAlgorithm
from nplex.algebra.table import Algebra


def known_algorithm(algebra: Algebra) -> BilinearAlgorithm | None:
    """The exact algorithm with the fewest products on file for this table, or None.

    On file: direct(n) with n products, complex and dual 3, split_complex 2, quaternion 8, split_quaternion and
    matrices(2) 7. Tables are compared by their numbers, so clifford(0,2) finds the quaternions' algorithm.
    """
    table = algebra.table
    for candidate in _on_file(algebra.n):
        if torch.equal(candidate.table(), table):
            return candidate
    return None


def _on_file(n: int) -> list[BilinearAlgorithm]:
    eye = torch.eye(n, dtype=torch.float64)
    special = {2: [_gauss(-1), _gauss(0), _split_complex()], 4: [_quaternion(), _strassen(), _split_quaternion()]}
    return [BilinearAlgorithm(eye, eye, eye), *special.get(n, [])]


def _matrix(rows: list[list[int]]) -> Float[Tensor, "n R"]:
    return torch.tensor(rows, dtype=torch.float64)


def _gauss(square: int) -> BilinearAlgorithm:
    """3 products: p = a0 b0, q = a1 b1, s = (a0 + a1)(b0 + b1); result (p + square q, s - p - q).

    Source: Knuth, The Art of Computer Programming, vol. 2 (1997), section 4.6.4 (there for square = -1).
    """
    encode = _matrix([[1, 0, 1], [0, 1, 1]])
    return BilinearAlgorithm(encode, encode, _matrix([[1, square, 0], [-1, -1, 1]]))


def _split_complex() -> BilinearAlgorithm:
    """2 products: p = (a0 + a1)(b0 + b1), q = (a0 - a1)(b0 - b1); result ((p + q) / 2, (p - q) / 2)."""
    encode = _matrix([[1, 1], [1, -1]])
    return BilinearAlgorithm(encode, encode, encode / 2)


def _quaternion() -> BilinearAlgorithm:
    """8 products: the group algebra of Z2 x Z2 by a Hadamard transform (4), corrected at four places (4).

    With s = H (H a * H b) / 4, all signs of the product are plus; result
    (2 a0 b0 - s0, s1 - 2 a3 b2, s2 - 2 a1 b3, s3 - 2 a2 b1).

    Source: 8 is the least number, Howell and Lafon, The complexity of the quaternion product (1975).
    """
    hadamard = _matrix([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
    eye = torch.eye(4, dtype=torch.float64)
    signs = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    return BilinearAlgorithm(
        torch.cat([hadamard, eye[:, [0, 3, 1, 2]]], 1),
        torch.cat([hadamard, eye[:, [0, 2, 3, 1]]], 1),
        torch.cat([signs[:, None] * hadamard / 4, torch.diag(-2 * signs)], 1),
    )


def _strassen() -> BilinearAlgorithm:
    """7 products for 2 x 2 matrices, entries in the order 11, 12, 21, 22.

    Source: Strassen, Gaussian elimination is not optimal (1969), equations (2) and (3).
    """
    left = [[1, 0, 1, 0, 1, -1, 0], [0, 0, 0, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, -1]]
    right = [[1, 1, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 1, 0], [0, 0, 0, 1, 0, 0, 1], [1, 0, -1, 0, 1, 0, 1]]
    out = [[1, 0, 0, 1, -1, 0, 1], [0, 0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0, 0], [1, -1, 1, 0, 0, 1, 0]]
    return BilinearAlgorithm(_matrix(left), _matrix(right), _matrix(out))


def _split_quaternion() -> BilinearAlgorithm:
    """Strassen's, seen through `1, i, j, k -> I, [[0, -1], [1, 0]], [[1, 0], [0, -1]], [[0, 1], [1, 0]]`."""
    basis = _matrix([[1, 0, 1, 0], [0, -1, 0, 1], [0, 1, 0, 1], [1, 0, -1, 0]])
    component, inputs, decode = _strassen()
    return BilinearAlgorithm(basis.mT @ component, basis.mT @ inputs, basis.mT @ decode / 2)
