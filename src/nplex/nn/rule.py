"""Rules as modules: called, they yield a multiplication table or its factors."""

import abc
import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nplex.algebra import Algebra, BilinearAlgorithm, as_table, find, known_algorithm
from nplex.nn import init
from nplex.nn.arguments import check_dtype, check_positive, guarded
from nplex.nn.sharing import Shareable
from nplex.ops.tracing import has_numbers, is_distributed, real_numbers

FACTORS = BilinearAlgorithm._fields


class Rule(Shareable, abc.ABC):
    """What every rule answers; LearnedRule and FixedRule are the two there are.

    A rule belongs to the layer that it is given to. To use one in several layers, `share` it first.

    Attributes:
        n: the dimension of the algebra.
        rank: R of a rule held as factors, None for a full table.
        initial_norm: the Frobenius norm of the table after reset_parameters; components are scaled by it.
        ownership: whether it is free, owned by a layer, or shared; see nplex.nn.sharing.
    """

    def __init__(self, n: int, rank: int | None, initial_norm: float) -> None:
        super().__init__()
        self.n, self.rank, self.initial_norm = n, rank, initial_norm

    @abc.abstractmethod
    def forward(self) -> Tensor | BilinearAlgorithm:
        """The table `[k, i, j]`, or the factors of a rule with a rank."""

    @abc.abstractmethod
    def reset_parameters(self) -> None:
        """First values for the rule's own tensors."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rule":
        """As torch's, but for what `guarded` says of types."""
        return super()._apply(guarded(fn), recurse)


class LearnedRule(Rule):
    """`rule[k, i, j]` as parameters: the full table, or three factors of R columns.

    Args:
        n: the dimension, 1 or more.
        rank: None for the full n x n x n table (the paper's layer); R for the three factors of a bilinear
            algorithm, with R / n^2 of the dense arithmetic. At the generic rank almost every table can be
            reached, at R = n no weight is used twice. R below n warns: W then has R / n of its full rank
            at most.
        start: an algebra to start from instead of a random rule: its table, scaled.
        norm: the Frobenius norm of the first table. It divides the size of W between rule and components, and so
            the size of an optimizer's steps. By default `sum_k || rule[k] ||_F = n^2`, which is norm `n^1.5` where
            all faces are equally large: then a step of Adam's, at the rate of the dense layer, lowers the loss as
            much as the dense layer's. For SGD that is so with norm n.
        device: as in torch.nn.
        dtype: as in torch.nn.

    Raises:
        ValueError: n or rank is not a positive whole number, start has another n, or has no algorithm of this rank.

    Attributes:
        initial_faces: `sum_k || rule[k] ||_F` after reset_parameters, which decides the size of Adam's steps.

    Source: Zhang et al., Beyond Fully-Connected Layers with Quaternions (2021), section 3.1: the learned A_i.

    Examples:
        >>> LearnedRule(4)().shape
        torch.Size([4, 4, 4])
        >>> LearnedRule(4, rank=7)().decode.shape
        torch.Size([4, 7])
    """

    table: nn.Parameter
    encode_component: nn.Parameter
    encode_input: nn.Parameter
    decode: nn.Parameter

    def __init__(
        self,
        n: int,
        rank: int | None = None,
        *,
        start: Algebra | None = None,
        norm: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_dtype(dtype)
        if norm is not None and not 0 < norm < math.inf:
            raise ValueError(f"norm must be a positive number, got {norm!r}")
        n = check_positive("n", n)
        if rank is not None:
            rank = check_positive("rank", rank)
            if rank > n * n:
                raise ValueError(f"rank must be at most n^2 = {n * n}, with which every table can be had; got {rank}")
            if rank < n:
                warnings.warn(
                    f"rank = {rank} is below n = {n}: the dense weight of a layer with this rule has at most "
                    f"{rank}/{n} of its full rank, whatever is learned; take rank={n} or more",
                    stacklevel=2,
                )
        if start is not None and not isinstance(start, Algebra):
            raise TypeError(f"start must be an Algebra, got {start!r}; nplex.algebra.named gives one by its name")
        if start is not None and start.n != n:
            raise ValueError(f"start must have n = {n}, got {start.name} with n = {start.n}")
        with real_numbers():
            first = None if start is None else _start(start, rank, norm)
            faces = None if first is None else as_table(first).flatten(1).norm(dim=1)
        super().__init__(n, rank, norm or n**1.5 if faces is None else float(faces.norm()))
        self.initial_faces = self.initial_norm * n**0.5 if faces is None else float(faces.sum())
        self.start, self._first = start, first
        shapes = {"table": (n, n, n)} if rank is None else dict.fromkeys(FACTORS, (n, rank))
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The algebra it starts from, or a random rule (nn.init), of the norm that it was made with."""
        with torch.no_grad():
            if isinstance(self._first, Tensor):
                init.write_(self.table, _numbers(self._first))
            elif self._first is not None:
                for name, factor in zip(FACTORS, self._first, strict=True):
                    init.write_(self.get_parameter(name), _numbers(factor))
            elif self.rank is None:
                init.table_(self.table, norm=self.initial_norm)
            else:
                init.factors_(self.encode_component, self.encode_input, self.decode, norm=self.initial_norm)

    def forward(self) -> Float[Tensor, "n n n"] | BilinearAlgorithm:
        """The table, or the factors."""
        if self.rank is None:
            return self.table
        return BilinearAlgorithm(self.encode_component, self.encode_input, self.decode)

    def extra_repr(self) -> str:
        """One line for print(model)."""
        start = "" if self.start is None else f", start={self.start.name}"
        return f"n={self.n}{'' if self.rank is None else f', rank={self.rank}'}{start}"


class FixedRule(Rule):
    """`rule[k, i, j] = algebra.table[k, i, j]`, never trained; saved as buffers.

    An algebra with a known bilinear algorithm (complex 3 products, quaternion 8, ...) is held as its factors, so
    that a layer needs R / n^2 of the dense arithmetic; others as their table, unless an algorithm is given.

    Args:
        algebra: the multiplication table.
        algorithm: an exact bilinear algorithm for it, as `nplex.algebra.find(table).algorithm` gives.
        device: as in torch.nn.
        dtype: as in torch.nn.

    Raises:
        ValueError: the algorithm does not give the algebra's table.

    Examples:
        >>> from nplex.algebra import quaternion
        >>> FixedRule(quaternion).rank
        8
    """

    def __init__(
        self,
        algebra: Algebra,
        *,
        algorithm: BilinearAlgorithm | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(algebra, Algebra):
            raise TypeError(f"FixedRule needs an Algebra, got {algebra!r}; make one with Algebra.from_table(table)")
        check_dtype(dtype)
        with real_numbers():
            algorithm = known_algorithm(algebra) if algorithm is None else algorithm
            if algorithm is not None and (algorithm.n != algebra.n or algorithm.error(algebra.table) > 1e-9):
                raise ValueError(f"the algorithm must give the table of {algebra.name}, but it gives another one")
            tensors = {"table": algebra.table} if algorithm is None else algorithm._asdict()
            # FakeTensorMode copies tensors as fakes, lists as they are
            values = {name: tensor.tolist() for name, tensor in tensors.items()}
            norm = float(algebra.table.norm())
        if norm == 0:
            raise ValueError(f"{algebra.name} multiplies everything to zero; a rule needs a table with some product")
        super().__init__(algebra.n, None if algorithm is None else algorithm.rank, norm)
        self.algebra, self._values = algebra, values
        dtype = dtype or torch.get_default_dtype()
        for name, tensor in tensors.items():
            self.register_buffer(name, torch.empty(tensor.shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The algebra's own numbers."""
        for name, value in self._values.items():
            buffer = self.get_buffer(name)
            if buffer.is_inference() and not torch.is_inference_mode_enabled():  # such a tensor cannot be written
                buffer = self._buffers[name] = torch.empty_like(buffer)
            init.write_(buffer, torch.tensor(value, dtype=torch.float64, device="cpu"), drawn=False)

    def forward(self) -> Float[Tensor, "n n n"] | BilinearAlgorithm:
        """The table, or the factors."""
        if self.rank is None:
            return self.get_buffer("table")
        return BilinearAlgorithm(*(self.get_buffer(name) for name in FACTORS))

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, local_metadata: dict, strict: bool, missing_keys: list[str],
        unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Looks whether the saved numbers are this algebra's, whatever their type; keeps its own exact ones."""
        saved = [state_dict[prefix + name] for name in self._values if prefix + name in state_dict]
        if len(saved) == len(self._values) and all(map(has_numbers, saved)):
            table = saved[0] if self.rank is None else BilinearAlgorithm(*saved).table()
            if table.shape != self.algebra.table.shape or not _same(table, self.algebra.table):
                error_msgs.append(f"{prefix or 'rule'}: the saved numbers are not the rule of {self.algebra.name}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.reset_parameters()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedRule":
        """As torch does it, and fills in the exact numbers again: .bfloat16().float() loses nothing."""
        super()._apply(fn, recurse)
        self.reset_parameters()
        return self

    def extra_repr(self) -> str:
        """One line for print(model)."""
        return f"{self.algebra.name}{'' if self.rank is None else f', rank={self.rank}'}"


def _numbers(table: Tensor) -> Tensor:
    """The table once more, for FakeTensorMode as one of its own: it mixes with no other."""
    with real_numbers():
        numbers = table.tolist()
    return torch.tensor(numbers, dtype=torch.float64, device="cpu")


def _same(saved: Tensor, table: Tensor) -> bool:
    """Equal up to the rounding of any type that may have been saved; two algebras differ by far more."""
    saved = cast(Any, saved).full_tensor() if is_distributed(saved) else saved
    error = (saved.detach().cpu().double() - table).abs().max()
    return bool(error <= 0.05 * table.abs().max())


def _start(algebra: Algebra, rank: int | None, norm: float | None) -> Tensor | BilinearAlgorithm:
    """An algebra's table or factors, so scaled that the table has this norm, or else faces of norm n in the mean."""
    scale = algebra.n**2 / algebra.table.flatten(1).norm(dim=1).sum() if norm is None else norm / algebra.table.norm()
    if rank is None:
        return scale * algebra.table
    encode_component, encode_input, decode = _algorithm(algebra, rank)
    return BilinearAlgorithm(scale * encode_component, encode_input, decode)


def _algorithm(algebra: Algebra, rank: int) -> BilinearAlgorithm:
    """Factors of an algebra's table at this rank: known ones, or found."""
    known = known_algorithm(algebra)
    if known is not None and known.rank == rank:
        return known
    search = find(algebra.table, rank)
    if search.verdict != "exact":
        raise ValueError(f"{algebra.name} has no algorithm of {rank} products to start from: {search.reason}")
    return search.algorithm
