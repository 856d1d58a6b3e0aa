"""Embeddings with 1/n of the parameters."""

import math
import warnings
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from nplex.nn import init
from nplex.nn.arguments import check_widths
from nplex.nn.computed import read_only
from nplex.nn.nearest import nearest_
from nplex.nn.rule import Rule
from nplex.nn.twin import Twin, adopt
from nplex.nn.written import RuleLike, as_rule
from nplex.ops.dense import expand
from nplex.ops.lookup import by_frequency, clip, look_up
from nplex.ops.tracing import full_precision

MODES = ("sum", "mean", "max")
FAR = 0.1


class _Rows(Twin):
    """What both embeddings share: rows of W by their numbers."""

    _flags: ClassVar[dict[str, str]] = {}
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    sparse: bool
    components: nn.Parameter

    def _build(self, shape: nn.Module, rule: Rule, device: torch.device | str | None, dtype: Any) -> None:
        """Takes torch's arguments from its layer on the meta device, and makes components."""
        adopt(self, shape)
        if self.sparse:
            raise ValueError(
                "sparse=True needs rows with numbers of their own, here rows share components; take sparse=False and "
                "an optimizer for dense gradients"
            )
        size = rule.n, math.ceil(self.num_embeddings / rule.n), math.ceil(self.embedding_dim / rule.n)
        self._set_up(rule, {"components": size}, device, dtype)

    def reset_parameters(self) -> None:
        """First values for components, `N(0, (n / rule_norm)^2)`: W gets the variance of torch's layer, 1."""
        init.fill_(self.components, lambda whole: nn.init.normal_(whole, std=self.rule.n / self.rule.initial_norm))

    def _rows(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """`W[ids]`, with max_norm and scale_grad_by_freq."""
        rows = look_up(ids, self.rule(), self.components, (self.num_embeddings, self.embedding_dim))
        if self.max_norm is not None:
            rows = clip(rows, self.max_norm, self.norm_type)
        return by_frequency(rows, ids, self.num_embeddings) if self.scale_grad_by_freq else rows

    @classmethod
    def _nearest(cls, dense: Any, freeze: bool, rule: RuleLike) -> Any:
        """The twin of torch's layer whose W is nearest to its table; a shared rule stays as it is."""
        table = dense.weight.detach()
        if not bool(table.isfinite().all()):
            raise ValueError("the table has numbers that are not finite; nothing is near to them")
        if dense.padding_idx is not None and bool(table[dense.padding_idx].any()):
            raise ValueError(f"the row at padding_idx = {dense.padding_idx} must be zero, as it is in this layer")
        layer = cls.like(dense, rule=rule)
        [error] = nearest_([(layer, dense)], [layer.rule] if layer.rule.is_shared else [])
        if error > FAR:
            missed = f"the nearest weight with this rule misses {100 * error:.0f} % of the table's norm"
            warnings.warn(f"{missed}: train it, or take a smaller n or torch.nn.{cls.__name__}", stacklevel=3)
        return layer.requires_grad_(not freeze)

    @property
    def weight(self) -> Float[Tensor, "rows d"]:
        """The dense W, built at each call, differentiable and read-only; to change it, change rule and components."""
        with full_precision(self.components):
            weight = expand(self.rule(), self.components)[: self.num_embeddings, : self.embedding_dim].contiguous()
        if self.padding_idx is not None:
            rows = torch.arange(self.num_embeddings, device=weight.device)
            weight = weight.masked_fill((rows == self.padding_idx)[:, None], 0)
        return read_only(weight)


class Embedding(_Rows):
    """`y = W[id]` with `W = sum_k kron(rule[k], components[k])`: torch.nn.Embedding with 1/n of the parameters.

    Only the rows asked for are made. Rows share their components, so one row cannot be written alone; where torch
    does that, the output is what it would be:

    - the row at padding_idx is zero, always, and passes on no gradient;
    - max_norm scales what is looked up, by a factor without a gradient, and leaves the components as they are.

    An output head can be tied to it: `F.linear(h, embedding.weight)`.

    Shape:
        input `(*)` of integers, output `(*, embedding_dim)`.

    Args:
        num_embeddings: rows of W.
        embedding_dim: columns of W.
        padding_idx: a row that is zero; counted from the end if negative.
        max_norm: rows with a larger norm are looked up scaled to this one.
        norm_type: p of that p-norm.
        scale_grad_by_freq: divides the gradient of a row by how often it is among the ids.
        sparse: must be False, a gradient of components has no sparse form.
        device: as in torch.nn; for torch's `_weight` and `_freeze` there is from_pretrained.
        dtype: as in torch.nn.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.

    Attributes:
        components: n x ceil(num_embeddings / n) x ceil(embedding_dim / n), the layer's own numbers.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or option is impossible; says what was expected.

    Examples:
        >>> layer = Embedding(30000, 512, rule=4)
        >>> layer(torch.tensor([[3, 1, 2]])).shape
        torch.Size([1, 3, 512])
        >>> sum(p.numel() for p in layer.parameters()), 30000 * 512 // 4 + 4**3
        (3840064, 3840064)
    """

    torch_layer = nn.Embedding

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
    ) -> None:
        super().__init__()
        rule = as_rule(rule, power=1.0, device=device, dtype=dtype)
        _check_sizes(rule.n, num_embeddings, embedding_dim, padding_idx)
        shape = nn.Embedding(
            num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, device="meta"
        )
        self._build(shape, rule, device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Float[Tensor, "rows d"],
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        rule: RuleLike,
    ) -> "Embedding":
        """`W` nearest to the table: a layer has n times fewer numbers, so it holds no other table exactly.

        Args:
            embeddings: the table; warns where W misses more than a tenth of it.
            freeze: whether nothing of the layer is trained; a shared rule is as it was.
            padding_idx: as in the layer; that row must be zero.
            max_norm: as in the layer, as are norm_type, scale_grad_by_freq and sparse.
            norm_type: as there.
            scale_grad_by_freq: as there.
            sparse: as there.
            rule: as in the layer; a rule that is learned and not shared is chosen with the components.

        Raises:
            ValueError: numbers that are not finite, a padding row that is not zero, or what the layer refuses.
        """
        options = (padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        return cls._nearest(nn.Embedding.from_pretrained(embeddings, True, *options), freeze, rule)

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """`W[ids]`."""
        rows = self._rows(input)
        return rows if self.padding_idx is None else rows.masked_fill((input == self.padding_idx)[..., None], 0)


class EmbeddingBag(_Rows):
    """`y = sum, mean or max of W[id]` over each bag of ids: torch.nn.EmbeddingBag with 1/n of the parameters.

    As Embedding, and then torch's own reduction of the rows looked up, so these exist for a moment. For
    scale_grad_by_freq torch 2.13 divides by other counts on a CPU; here it is what torch documents.

    Shape:
        input `(bags, ids)`, or `(ids)` with the offsets at which bags start; output `(bags, embedding_dim)`.

    Args:
        num_embeddings: rows of W.
        embedding_dim: columns of W.
        max_norm: rows with a larger norm are looked up scaled to this one.
        norm_type: p of that p-norm.
        scale_grad_by_freq: divides the gradient of a row by how often it is among the ids; not with mode "max".
        mode: "sum", "mean" or "max".
        sparse: must be False, a gradient of components has no sparse form.
        include_last_offset: whether offsets end with the number of ids; there is no `_weight` before it.
        padding_idx: a row that counts in no bag; from the end if negative.
        device: as in torch.nn, as is dtype.
        dtype: the type of the weight.
        rule: n for a learned rule of this layer's own, an Algebra for a fixed one, or a Rule.

    Attributes:
        components: n x ceil(num_embeddings / n) x ceil(embedding_dim / n), the layer's own numbers.
        rule: the rule; registered here unless it is shared.

    Raises:
        ValueError: a size, rule or option is impossible; says what was expected.

    Examples:
        >>> layer = EmbeddingBag(1000, 64, mode="sum", rule=4)
        >>> layer(torch.tensor([3, 1, 2, 5]), torch.tensor([0, 3])).shape
        torch.Size([2, 64])
    """

    torch_layer = nn.EmbeddingBag
    mode: str
    include_last_offset: bool

    def __init__(  # noqa: PLR0913 - torch's own signature
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rule: RuleLike,
    ) -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
        if mode == "max" and scale_grad_by_freq:
            raise ValueError("scale_grad_by_freq does not go with mode 'max', as in torch; take 'sum' or 'mean'")
        rule = as_rule(rule, power=1.0, device=device, dtype=dtype)
        _check_sizes(rule.n, num_embeddings, embedding_dim, padding_idx)
        shape = nn.EmbeddingBag(
            num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse,
            include_last_offset=include_last_offset, padding_idx=padding_idx, device="meta",
        )  # fmt: skip
        self._build(shape, rule, device, dtype)

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - torch's own signature
        cls,
        embeddings: Float[Tensor, "rows d"],
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        rule: RuleLike,
    ) -> "EmbeddingBag":
        """`W` nearest to the table, with torch's arguments: see Embedding.from_pretrained."""
        options = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset, padding_idx)
        return cls._nearest(nn.EmbeddingBag.from_pretrained(embeddings, True, *options), freeze, rule)

    def forward(
        self,
        input: Int[Tensor, "*ids"],
        offsets: Int[Tensor, "bags"] | None = None,
        per_sample_weights: Float[Tensor, "*ids"] | None = None,
    ) -> Float[Tensor, "_ d"]:
        """The rows of each bag, reduced; see torch.nn.EmbeddingBag for the arguments."""
        flat, padding = input.reshape(-1), None
        places = torch.arange(flat.shape[0], dtype=input.dtype, device=input.device)
        if self.padding_idx is not None:  # one more row, before the others, that torch's reduction leaves out
            padding, places = 0, (places + 1).masked_fill(flat == self.padding_idx, 0)
            flat = torch.cat([flat.new_full((1,), self.padding_idx), flat])
        return F.embedding_bag(
            places.reshape(input.shape), self._rows(flat), offsets, mode=self.mode, padding_idx=padding,
            per_sample_weights=per_sample_weights, include_last_offset=self.include_last_offset,
        )  # fmt: skip


def _check_sizes(n: int, rows: int, width: int, padding: int | None) -> None:
    """Raises a ValueError for sizes that torch refuses by an assertion, or not at all."""
    check_widths(n, num_embeddings=rows, embedding_dim=width)
    if padding is not None and not -rows <= padding < rows:
        raise ValueError(f"padding_idx must be from {-rows} to {rows - 1}, got {padding}")
